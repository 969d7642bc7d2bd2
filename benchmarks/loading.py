"""From a checkpoint to pictures: `python -m benchmarks.loading [--genai PYTHON] [--base CLONE]` (make bench).

Random weights in SD 1.5's shape, as a folder in float16 and float32 and as a single file. Each turn starts a server on
each with an empty cache, asks for a picture of one unguided step, and starts it again; with --genai (an interpreter
that has OpenVINO GenAI) that loads, compiles and draws the same between them. Then the demo model, with --base
interleaved with another clone. With --sdxl a folder of SDXL's shape in place of all these. Weights are in the page
cache; seconds depend on what else runs, so CPU seconds stand beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.genai import peer as genai
from benchmarks.health import longest_gap
from benchmarks.memory import export_libraries, memory_of
from benchmarks.random_checkpoint import SDXL, write_folder, write_single_file
from benchmarks.rows import Rows
from benchmarks.serving import IN_FLIGHT, ROOT, Work, cpu_seconds, server, through_grpc
from benchmarks.untouched import Places
from latentd import Client

SIDE = 512  # of SD 1.5's pictures; SDXL's are four times as large
Figures = dict[str, list[float]]  # of each turn, by row
_UNITS = {
    "CPU time": "s",
    "peak": "MB",
    "lasting": "MB",
    "files": "files",
    "libraries": "files",
    "over": "ratio",
    "gap": "ms",
}


def serve(model: Path, scratch: Path, figures: Figures) -> None:
    """Start a server with empty places, draw, start it again; append a figure to each row."""
    places = Places(model, scratch)
    seconds = first_start(model, places, figures)
    with server(model, places.environment) as (_, again, _):
        figures["second start to SERVING"].append(again)
        figures["second start over first"].append(again / seconds)
    figures["longest gap between answers of health, loading"].append(longest_gap(model, places.environment, ROOT))
    if written := places.written():
        print(f"{model.name}: written or changed: {', '.join(written)}", file=sys.stderr)
    figures["files written or changed"].append(len(written))


def first_start(model: Path, places: Places, figures: Figures) -> float:
    """Start a server that makes engines of SIDE alone, and draw; append a figure to each row, and return the first."""
    flags = ("--sizes", f"{SIDE}x{SIDE}")
    with server(model, places.environment, flags=flags) as (address, seconds, pid):
        figures["start to SERVING"].append(seconds)
        figures["CPU time from start to SERVING"].append(cpu_seconds(pid))
        figures["peak memory at SERVING"].append(memory_of(pid).peak)
        figures["first picture of one unguided step"].append(picture(address))
        memory = memory_of(pid)
        figures["peak memory after that picture"].append(memory.peak)
        figures["lasting memory, anonymous"].append(memory.anonymous)
        figures["lasting memory, mapped files"].append(memory.file)
        begun = cpu_seconds(pid)
        one, one_cpu = picture(address), cpu_seconds(pid) - begun
        four, four_cpu = picture(address, 4), cpu_seconds(pid) - begun - one_cpu
        figures["one unguided step more"].append((four - one) / 3)
        figures["CPU time of one unguided step more"].append((four_cpu - one_cpu) / 3)
        figures["libraries of torch, onnx, ONNX Runtime"].append(len(export_libraries(pid)))
    return seconds


def picture(address: str, steps: int = 1) -> float:
    """Time one request until its PNG is in hand, in seconds."""
    client = Client(address)
    try:
        start = time.perf_counter()
        client.generate("red apple", seed=1, steps=steps, guidance=1, sampler="ddim", width=SIDE, height=SIDE)
        return time.perf_counter() - start
    finally:
        client.close()


def peer(python: str, folder: Path, figures: Figures) -> str:
    """Run GenAI once; append a figure to each of its rows, and return its version."""
    names = {
        "compile": "GenAI load and compile",
        "whole": "GenAI start to compiled",
        "cpu": "GenAI CPU time from start to compiled",
        "picture": "GenAI first picture of one unguided step",
        "loaded_peak": "GenAI peak memory compiled",
        "peak": "GenAI peak memory after that picture",
        "anonymous": "GenAI lasting memory, anonymous",
        "file": "GenAI lasting memory, mapped files",
        "step": "GenAI one unguided step more",
        "step_cpu": "GenAI CPU time of one unguided step more",
    }
    values = genai.run(python, folder, SIDE)
    for key, row in names.items():
        figures[row].append(values[key])
    return values["version"]


def compare(ours: Figures, theirs: Figures) -> None:
    """Append the ratio of the last starts: the server's, which draws before it serves, over GenAI's, which does not."""
    ratio = ours["start to SERVING"][-1] / theirs["GenAI load and compile"][-1]
    ours["start to SERVING over GenAI's load and compile"].append(ratio)


def full_width(rows: Rows, scratch: Path, turns: int, python: str | None) -> None:
    """Measure the checkpoint of SD 1.5's shape in its three kinds, interleaved with GenAI where it is there."""
    f16, f32 = write_folder(scratch / "f16", "float16"), write_folder(scratch / "f32", "float32")
    one = write_single_file(scratch / "single-f16.safetensors", f16)
    models = {"folder float16": f16, "folder float32": f32, "single file float16": one}
    theirs: dict[str, Path] = {}
    if python:
        for dtype in ("float16", "float32"):
            theirs[dtype] = genai.write_folder(scratch / f"genai-{dtype}", f32, dtype, python)
    figures: Mapping[str, Figures] = defaultdict(lambda: defaultdict(list))
    version = ""
    for _ in range(turns):
        for dtype, folder in theirs.items():
            version = peer(python or "", folder, figures[f"IR {dtype}"])
        for name, model in models.items():
            serve(model, scratch, figures[name])
            if theirs:
                compare(figures[name], figures[f"IR {name.split()[-1]}"])
    for name, values in figures.items():
        contents = _contents(name, version, "text encoder")
        add(rows, f"SD 1.5's shape, random, {name}, {SIDE}x{SIDE} ddim; {contents}", values)


def sdxl(rows: Rows, scratch: Path, turns: int, python: str | None) -> None:
    """Measure the checkpoint of SDXL's shape, a folder in float16, interleaved with GenAI where it is there."""
    figures: Mapping[str, Figures] = defaultdict(lambda: defaultdict(list))
    theirs, version = None, ""
    if python:
        f32 = write_folder(scratch / "f32", "float32", SDXL)
        theirs = genai.write_folder(scratch / "genai", f32, "float16", python)
        shutil.rmtree(f32)
    model = write_folder(scratch / "f16", "float16", SDXL)
    for _ in range(turns):
        if theirs:
            version = peer(python or "", theirs, figures["IR float16"])
        first_start(model, Places(model, scratch), figures["folder float16"])
        if theirs:
            compare(figures["folder float16"], figures["IR float16"])
    for name, values in figures.items():
        contents = _contents(name, version, "text encoders")
        add(rows, f"SDXL base's shape, random, {name}, {SIDE}x{SIDE} ddim; {contents}", values)


def _contents(name: str, version: str, text: str) -> str:
    return f"all in bf16, one row, static, GenAI {version}" if name.startswith("IR") else f"{text} f32, rest bf16"


def demo(rows: Rows, scratch: Path, turns: int, base: Path | None) -> None:
    """Measure the demo model, in turn with that of the clone `base`, whose cache is warm."""
    clones: dict[str, tuple[Path, tuple[str, ...]]] = {"": (ROOT, ("latentd", "serve"))}
    if base:
        clones[", the commit before, warm cache"] = base, ("server",)
    figures: Mapping[str, Figures] = defaultdict(lambda: defaultdict(list))
    environments = {which: Places(ROOT / "demo" / "small-things", scratch).environment for which in clones}
    for turn in range(-1, turns):  # the first fills caches
        for which, (clone, words) in clones.items():
            model = clone / "demo" / "small-things"
            with server(model, environments[which], clone, words) as (address, seconds, pid):
                asyncio.run(through_grpc(address, Work(model, 2 * IN_FLIGHT), turn))
                if turn >= 0:
                    figures[which]["start to SERVING"].append(seconds)
                    figures[which]["peak memory after 16 pictures"].append(memory_of(pid).peak)
    for which, values in figures.items():
        add(rows, f"small-things 64x64{which}", values)
    if base:
        now, before = (values["start to SERVING"] for values in figures.values())
        ratios = [a / b for a, b in zip(now, before, strict=True)]
        add(rows, "small-things 64x64", {"start to SERVING over the commit before's": ratios})


def add(rows: Rows, shape: str, figures: Mapping[str, Any]) -> None:
    for what, values in figures.items():
        unit = next((unit for word, unit in _UNITS.items() if word in what), "s")
        rows.add(what, shape, unit, values)


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.loading", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--genai", metavar="PYTHON", help=f"an interpreter that has {genai.NEEDS}")
    parser.add_argument("--base", metavar="CLONE", type=Path, help="a clone of an earlier commit, for the demo model")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--sdxl", action="store_true", help="SDXL's shape alone, of a folder in float16")
    parser.add_argument(
        "--scratch", metavar="DIR", type=Path, help="where 14 GB fit, 21 of SDXL (default: a temporary folder)"
    )
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints there")
    options = parser.parse_args()
    python = options.genai
    if not python or not genai.is_there(python):
        print(f"no rows of OpenVINO GenAI: --genai names an interpreter that has {genai.NEEDS}", file=sys.stderr)
        python = None
    rows = Rows("loading-cpu", ("openvino", "grpcio", "numpy"))
    if options.scratch:
        options.scratch.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="latentd-loading-", dir=options.scratch))
    try:
        if options.sdxl:
            sdxl(rows, scratch, options.turns, python)
        else:
            demo(rows, scratch, options.turns, options.base)
            full_width(rows, scratch, options.turns, python)
    finally:
        if options.keep:
            print(f"kept: {scratch}", file=sys.stderr)
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(main())
