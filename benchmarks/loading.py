"""From a checkpoint to pictures: `python -m benchmarks.loading [--genai PYTHON] [--base CLONE]` (make bench).

Random weights in SD 1.5's shape, as a folder in float16 and float32 and as a single file. Each turn starts a server on
each with an empty cache, asks for a picture of one unguided step, and starts it again; with --genai (an interpreter
that has OpenVINO GenAI) that loads, compiles and draws the same between them. Then the demo model, with --base
interleaved with another clone. Weights are in the page cache; seconds depend on what else runs, so CPU seconds stand
beside them.
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
from benchmarks.random_checkpoint import write_folder, write_single_file
from benchmarks.rows import Rows
from benchmarks.serving import IN_FLIGHT, ROOT, Work, cpu_seconds, server, through_grpc
from benchmarks.untouched import Places
from latentd import Client

SIDE = 512  # of SD 1.5's pictures
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
    with server(model, places.environment) as (address, seconds, pid):
        figures["start to SERVING"].append(seconds)
        figures["CPU time from start to SERVING"].append(cpu_seconds(pid))
        figures["peak memory at SERVING"].append(memory_of(pid).peak)
        figures["first picture of one unguided step"].append(picture(address))
        memory = memory_of(pid)
        figures["peak memory after that picture"].append(memory.peak)
        figures["lasting memory, anonymous"].append(memory.anonymous)
        figures["lasting memory, mapped files"].append(memory.file)
        figures["libraries of torch, onnx, ONNX Runtime"].append(len(export_libraries(pid)))
    with server(model, places.environment) as (_, again, _):
        figures["second start to SERVING"].append(again)
        figures["second start over first"].append(again / seconds)
    figures["longest gap between answers of health, loading"].append(longest_gap(model, places.environment, ROOT))
    if written := places.written():
        print(f"{model.name}: written or changed: {', '.join(written)}", file=sys.stderr)
    figures["files written or changed"].append(len(written))


def picture(address: str) -> float:
    """Time one request until its PNG is in hand, in seconds."""
    client = Client(address)
    try:
        start = time.perf_counter()
        client.generate("red apple", seed=1, steps=1, guidance=1, sampler="ddim")
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
    }
    values = genai.run(python, folder, SIDE)
    for key, row in names.items():
        figures[row].append(values[key])
    return values["version"]


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
                compiled = figures[f"IR {name.split()[-1]}"]["GenAI load and compile"][-1]
                figures[name]["start to SERVING over GenAI's load and compile"].append(
                    figures[name]["start to SERVING"][-1] / compiled
                )
    for name, values in figures.items():
        contents = (
            f"all in bf16, one row, static, GenAI {version}" if name.startswith("IR") else "text encoder f32, rest bf16"
        )
        add(rows, f"SD 1.5's shape, random, {name}, {SIDE}x{SIDE} ddim; {contents}", values)


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
    parser.add_argument("--scratch", metavar="DIR", type=Path, help="where 14 GB fit (default: a temporary folder)")
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
