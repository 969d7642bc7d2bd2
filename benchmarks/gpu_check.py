"""What this GPU can do, and what a step costs on it: `python -m benchmarks.gpu_check`.

Needs torch and triton only: no weights, no network, no other package. A step here is one forward pass of a UNet of
SD 1.5's shape (512x512 pixels) with random weights in float16, channels_last. Rows of the table are written as they
are measured, to benchmarks/results/ and, if it is set, to the folder `$OUT`. A section that fails does not stop the
next one. Exit codes: 0 all well, 1 something failed or disagreed, 2 no NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

try:
    import torch
except ModuleNotFoundError:
    raise SystemExit("gpu-check needs torch, which this Python does not have") from None
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from model.random import init_random
from model.unet import Unet
from pipeline.spec import UnetSpec

SD15 = UnetSpec(
    in_channels=4,
    out_channels=4,
    sample_size=64,
    channels=(320, 640, 1280, 1280),
    layers=(2, 2, 2, 2),
    attention_down=(True, True, True, False),
    attention_up=(False, True, True, True),
    heads=(8, 8, 8, 8),
    transformer_layers=(1, 1, 1, 1),
    context_width=768,
    linear_projection=False,
    groups=32,
    eps=1e-5,
    flip_sin_to_cos=True,
    freq_shift=0.0,
)
TINY = replace(SD15, sample_size=8, channels=(16, 32, 32, 32), heads=(2, 2, 2, 2), context_width=24, groups=8)
COLUMNS = tuple("what,rows,mode,unit,p20,p50,p80,device,torch,triton,cuda,date".split(","))  # noqa: SIM905
ROWS, COMPILED_ROWS = (2, 8, 16, 32), (2, 32)
# No compilation starts later than this: each takes a minute or two, and all of it should take under eight.
COMPILE_UNTIL = 300.0  # seconds
# Relative error of a float16 step against float32, on random weights: 2.1e-3 on a CPU; bfloat16 has 1.7e-2.
TOLERANCE = 1e-2

Inputs = tuple[Tensor, Tensor, Tensor]


@dataclass
class Check:
    """One run: where it computes, where its rows go, and what went wrong."""

    device: torch.device
    dtype: torch.dtype
    spec: UnetSpec
    files: list[Path]
    stamp: dict[str, str]
    faults: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    @property
    def dry(self) -> bool:
        return self.device.type == "cpu"

    def section(self, name: str, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception:
            traceback.print_exc()
            self.faults.append(f"{name} failed")

    def expect(self, true: bool, what: str) -> None:
        print(f"  {'ok   ' if true else 'WRONG'} {what}", flush=True)
        if not true:
            self.faults.append(what)

    def row(self, what: str, rows: int | str, mode: str, unit: str, values: list[float], note: str = "") -> None:
        ordered = sorted(values)
        p20, p50, p80 = (f"{ordered[round(q * (len(ordered) - 1))]:.4g}" for q in (0.2, 0.5, 0.8))
        print(f"{what:8} {rows!s:>4} {mode:16} {p20:>7} {p50:>7} {p80:>7} {unit}  {note}", flush=True)
        line = (what, rows, mode, unit, p20, p50, p80, *self.stamp.values())
        for path in self.files:
            new = not path.exists()
            with path.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, line] if new else [line])

    def seconds(self, run: Callable[[], object], repeats: int = 50) -> list[float]:
        """Of each of `repeats` runs after three more to warm up; by CUDA events, so launch gaps count."""
        if self.dry:
            clock = [(time.perf_counter(), run(), time.perf_counter()) for _ in range(3)]
            return [end - begin for begin, _, end in clock]
        for _ in range(3):
            run()
        begin, end = ([torch.cuda.Event(enable_timing=True) for _ in range(repeats)] for _ in range(2))
        for i in range(repeats):
            begin[i].record()
            run()
            end[i].record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in zip(begin, end, strict=True)]


def ceilings(check: Check) -> None:
    """The two rates that bound every kernel: a large matrix product, a large copy."""
    side, count = (64, 1 << 16) if check.dry else (8192, 1 << 30)
    for dtype in (torch.bfloat16, torch.float16):
        # Random data: zeros run faster than data does.
        a, b = (torch.randn(side, side, device=check.device).to(dtype) for _ in range(2))
        rates = [2 * side**3 / s / 1e12 for s in check.seconds(lambda a=a, b=b: a @ b)]
        check.row("matmul", "", f"{str(dtype)[6:]} {side}^3", "TFLOP/s", rates)
    source = torch.randint(0, 1 << 30, (count,), dtype=torch.int32, device=check.device)  # 4 GiB
    target = torch.empty_like(source)
    rates = [2 * source.nbytes / s / 1e9 for s in check.seconds(lambda: target.copy_(source))]  # read and written
    check.row("copy", "", f"{source.nbytes} bytes", "GB/s", rates)


def inputs(check: Check, rows: int, seed: int) -> Inputs:
    side, generator = check.spec.sample_size, torch.Generator(check.device).manual_seed(seed)
    options = {"device": check.device, "generator": generator}
    latents = torch.randn(rows, check.spec.in_channels, side, side, **options).to(check.dtype)
    timestep = torch.rand(rows, **options) * 999
    context = torch.randn(rows, 77, check.spec.context_width, **options).to(check.dtype)
    return latents.contiguous(memory_format=torch.channels_last), timestep, context


def captured(step: Callable[..., Tensor], fixed: Inputs) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """`step` over the fixed buffers as a CUDA graph, and the buffer that it writes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm-up: library handles and algorithm choices may not be made in a capture
        for _ in range(3):
            step(*fixed)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step(*fixed)
    return graph, out


def error(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def measure(check: Check, mode: str, step: Callable[..., Tensor], rows: int, unet: Unet, flops: float) -> None:
    """Times `step`, plain and as a graph; compares the first with `unet` itself, the second with the first."""
    fixed, fresh = inputs(check, rows, seed=0), inputs(check, rows, seed=1)

    def report(name: str, run: Callable[[], object]) -> None:
        seconds = check.seconds(run)
        rate = rows * flops / sorted(seconds)[len(seconds) // 2] / 1e12
        check.row("step", rows, name, "ms", [1e3 * s for s in seconds], f"{rate:.0f} TFLOP/s")

    plain = step(*fresh).clone()
    far = error(plain, unet(*fresh))
    check.expect(far < TOLERANCE, f"{mode}, {rows} rows: error {far:.1e} to eager")
    report(mode, lambda: step(*fixed))
    if check.dry:
        return
    graph, out = captured(step, fixed)
    for buffer, values in zip(fixed, fresh, strict=True):
        buffer.copy_(values)
    out.fill_(float("nan"))  # a replay that writes nothing shows
    graph.replay()
    torch.cuda.synchronize()
    worst = error(out, plain)
    check.expect(torch.equal(out, plain), f"{mode}, {rows} rows: graph replay equals plain run (error {worst:.1e})")
    report("graph" if mode == "eager" else f"{mode} graph", graph.replay)


def steps(check: Check) -> None:
    with torch.device(check.device):
        unet = Unet(check.spec).eval().to(check.dtype)
    init_random(unet, seed=0)
    unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stubs lack this overload)
    latents, timestep, context = inputs(check, 2, seed=1)
    with FlopCounterMode(display=False) as counter:
        half = unet(latents, timestep, context)
    flops = counter.get_total_flops() / 2
    print(f"a row is {flops / 1e9:.1f} GFLOP, {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M weights")

    def precision() -> None:
        # The same float16 weights, computed in float32 without tf32.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        try:
            far = error(half, unet.float()(latents.float(), timestep, context.float()))
        finally:
            unet.to(check.dtype)
        check.expect(far < TOLERANCE, f"error of the {check.dtype} step to float32: {far:.1e}")

    check.section("float32 reference", precision)
    for rows in ROWS[: 1 if check.dry else None]:
        check.section(f"eager {rows}", partial(measure, check, "eager", unet, rows, unet, flops))
    for rows in COMPILED_ROWS[: 1 if check.dry else None]:
        if time.monotonic() - check.start > COMPILE_UNTIL:
            print(f"compiled {rows}: skipped, {COMPILE_UNTIL:.0f} s have passed")
            continue
        backend = "aot_eager" if check.dry else "inductor"
        compiled = torch.compile(unet, fullgraph=True, dynamic=False, backend=backend)
        check.section(f"compiled {rows}", partial(measure, check, "compiled", compiled, rows, unet, flops))


def environment(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    cuda, now = torch.version.cuda or "", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
    print(f"device {name}\ntorch {torch.__version__}, triton {triton or 'absent'}, CUDA {cuda or 'absent'}")
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        print(
            f"compute capability {facts.major}.{facts.minor}, {facts.multi_processor_count} multiprocessors, "
            f"{facts.total_memory / 2**30:.0f} GiB, cuDNN {torch.backends.cudnn.version()}"
        )
    return {"device": name, "torch": torch.__version__, "triton": triton, "cuda": cuda, "date": now}


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_check", description="Measures a GPU, and a step on it.")
    parser.add_argument("--dry-run", action="store_true", help="run the code, not the measurement: tiny, on the CPU")
    dry = parser.parse_args().dry_run
    if not dry and (not torch.cuda.is_available() or torch.version.cuda is None):
        print("No NVIDIA GPU that torch can use was found; gpu_check measures nothing else.", file=sys.stderr)
        return 2
    device = torch.device("cpu" if dry else "cuda")
    stamp = environment(device)
    slug = re.sub(r"[^a-z0-9]+", "-", stamp["device"].lower()).strip("-")
    folders = [Path(tempfile.mkdtemp()) if dry else Path(__file__).parent / "results"]
    folders += [Path(os.environ["OUT"])] if os.environ.get("OUT") else []
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"gpu-{slug}-{stamp['date'][:10]}.csv" for folder in folders]
    check = Check(device, torch.float32 if dry else torch.float16, TINY if dry else SD15, files, stamp)
    check.section("ceilings", partial(ceilings, check))
    check.section("steps", partial(steps, check))
    print(f"{time.monotonic() - check.start:.0f} s; rows are in {', '.join(map(str, files))}")
    for fault in check.faults:
        print(f"FAULT: {fault}")
    return 1 if check.faults else 0


if __name__ == "__main__":
    sys.exit(main())
