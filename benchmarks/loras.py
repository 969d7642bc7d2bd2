"""What LoRAs cost on this machine: `python -m benchmarks.loras [step|requests]`, as rows.

`step`: a row of SD 1.5's full shape with random weights, by a server's engines with LoRAs of each rank over those of
one without, in turn. Every layer that a LoRA may add to takes part, whatever a file has. `requests`: pictures a second
of the demo model, each with another of a hundred files, over a server without a folder, in turn. `large`: the same of
SD 1.5's shape, pictures of four unguided steps, files of rank 32 (4 GB). On a busy machine the ratios say more than the
seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.random_checkpoint import write_folder, write_safetensors
from benchmarks.rows import Rows
from benchmarks.serving import IN_FLIGHT, server_process
from engines.backend import Denoiser
from engines.choice import Choice
from engines.model import Beside, load
from latentd import AsyncClient
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.loras.layers import text_layers, unet_layers
from pipeline.size import parse_sizes
from pipeline.spec import Spec

DEMO = Path(__file__).parent.parent / "demo" / "small-things"
FILES = 100


def write_lora(path: Path, spec: Spec, rank: int, seed: int) -> None:
    """Write a LoRA in kohya's names and float16, for every layer of UNet and text encoder."""
    chance, tensors = np.random.default_rng(seed), []
    for prefix, layers in (("lora_unet_", unet_layers(spec.unet)), ("lora_te_", text_layers(spec.text))):
        for layer, (out, into) in layers.items():
            for which, shape in (("down", (rank, into)), ("up", (out, rank))):
                name = f"{prefix}{layer.replace('.', '_')}.lora_{which}.weight"
                values = (chance.standard_normal(shape, np.float32) * 0.02).astype(np.float16)
                tensors.append((name, shape, lambda values=values: values))
    write_safetensors(path, "float16", tensors)


def _sd15(scratch: Path) -> Path:
    folder = scratch / "sd15-float16"
    if not (folder / "unet").is_dir():
        write_folder(folder, "float16")
    return folder


def step(rows: Rows, turns: int, size: tuple[int, int], scratch: Path, ranks: list[int]) -> None:
    """Time a row without LoRAs, and with one of each rank, in turn."""
    checkpoint = open_checkpoint(_sd15(scratch))
    (loras := scratch / "loras").mkdir(exist_ok=True)
    for rank in ranks:
        write_lora(loras / f"rank{rank}.safetensors", checkpoint.spec, rank, rank)
    model = load(checkpoint, Choice("openvino"), Beside(loras=loras))
    runs: dict[str, Denoiser] = {"no LoRAs": load(checkpoint, Choice("openvino")).backend.denoiser(*size, rows=1)}
    handing = []
    for rank in ranks:
        denoiser = model.backend.denoiser(*size, rows=1, rank=rank)
        runs[f"rank {rank}"] = denoiser
        start = time.perf_counter()
        assert model.loras is not None
        lora = model.loras.lora(model.loras.chosen([(f"rank{rank}", 1.0)]))
        read = time.perf_counter()
        denoiser.put_lora(0, lora)
        handing.append((rank, 1e3 * (read - start), 1e3 * (time.perf_counter() - read)))
    took: dict[str, list[float]] = {name: [] for name in runs}
    busy: dict[str, list[float]] = {name: [] for name in runs}  # seconds of the cores, which others' work delays less
    for turn in range(turns + 1):  # the first one warms up
        for name, denoiser in runs.items():
            start, cores = time.perf_counter(), time.process_time()
            denoiser.run([0])
            if turn:
                took[name].append(time.perf_counter() - start)
                busy[name].append(time.process_time() - cores)
    shape = f"SD 1.5 {size[0]}x{size[1]}, {model.backend.precision}"
    for name, seconds in took.items():
        rows.add(f"a row, {name}", shape, "s", seconds)
        rows.add(f"a row, {name}", shape, "s of cores", busy[name])
        if name != "no LoRAs":
            for unit, these in (("ratio", took), ("ratio of cores", busy)):
                ratios = [one / plain for one, plain in zip(these[name], these["no LoRAs"], strict=True)]
                rows.add(f"a row, {name} over none", shape, unit, ratios)
    for rank, reading, binding in handing:
        rows.add(f"reading a LoRA of rank {rank}", shape, "ms", [reading])
        rows.add(f"handing it to a row, rank {rank}", shape, "ms", [binding])


def requests(rows: Rows, turns: int, pictures: int) -> None:
    """Draw pictures through gRPC, each with a LoRA that has not been used for a hundred, and without any."""
    _throughput(rows, DEMO, 16, turns, pictures, f"{DEMO.name}, {IN_FLIGHT} in flight", {})


def large(rows: Rows, turns: int, size: tuple[int, int], scratch: Path) -> None:
    """Draw pictures of SD 1.5's full shape, likewise, so few a turn that all are in flight."""
    shape, pictures = f"SD 1.5 {size[0]}x{size[1]}, 4 unguided steps", 4
    wish = {"width": size[0], "height": size[1], "steps": 4, "guidance": 1}
    _throughput(rows, _sd15(scratch), 32, turns, pictures, f"{shape}, {pictures} in flight", wish)


def _throughput(
    rows: Rows, model: Path, rank: int, turns: int, pictures: int, shape: str, wish: dict[str, Any]
) -> None:
    spec = open_checkpoint(model).spec
    with tempfile.TemporaryDirectory() as folder:
        for number in range(FILES):
            write_lora(Path(folder) / f"lora{number}.safetensors", spec, rank, number)
        numbers = itertools.cycle(range(FILES))
        with (
            server_process(model) as (plain, _, _),
            server_process(model, flags=("--loras", folder)) as (adapted, _, _),
        ):
            rates = {"none": [], "another one each": []}
            for turn in range(turns + 1):
                for name, line in (("none", plain), ("another one each", adapted)):
                    address = re.findall(r"gRPC (\S+),", line)[0]
                    rate = asyncio.run(_rate(address, pictures, numbers if line is adapted else None, wish))
                    if turn:
                        rates[name].append(rate)
    for name, each in rates.items():
        rows.add(f"pictures, LoRA: {name}", shape, "1/s", each)
    ratios = [one / none for one, none in zip(rates["another one each"], rates["none"], strict=True)]
    rows.add("pictures, LoRAs over none", shape, "ratio", ratios)


async def _rate(address: str, pictures: int, numbers: itertools.cycle[int] | None, wish: dict[str, Any]) -> float:
    client, todo = AsyncClient(address), iter(range(pictures))

    async def one_after_another() -> None:
        for picture in todo:
            loras = None if numbers is None else {f"lora{next(numbers)}": 0.8}
            await client.generate(f"red apple {picture}, color style", seed=picture, loras=loras, **wish)

    start = time.perf_counter()
    try:
        await asyncio.gather(*(one_after_another() for _ in range(IN_FLIGHT)))
        return pictures / (time.perf_counter() - start)
    finally:
        await client.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loras", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("step", "requests", "large", "all"), default="all")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--size", default="512x512", help="of a picture of SD 1.5")
    parser.add_argument("--ranks", default="32,64", help="of LoRAs")
    parser.add_argument("--pictures", type=int, default=40, help="a turn")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "latentd-loras")
    parser.add_argument("--no-rows", action="store_true", help="print alone")
    options = parser.parse_args()
    rows = Rows("loras-cpu", ("openvino", "numpy"), keep=not options.no_rows)
    options.scratch.mkdir(parents=True, exist_ok=True)
    if options.what in ("step", "all"):
        ranks = [int(rank) for rank in options.ranks.split(",")]
        step(rows, options.turns, parse_sizes(options.size)[0], options.scratch, ranks)
    if options.what in ("requests", "all"):
        requests(rows, options.turns, options.pictures)
    if options.what in ("large", "all"):
        large(rows, options.turns, parse_sizes(options.size)[0], options.scratch)


if __name__ == "__main__":
    main()
