"""Compiles what the sections launch into Triton's cache: one of the processes that frame/ahead.py starts.

`python -m benchmarks.gpu.warm WALK I N` does all that WALK does but launching kernels of ours, and compiles every N-th
variant that it meets, from the I-th on. What fails here is told by the case that measures it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.frame.report import Report


def _attention(report: Report) -> Iterator[Callable[[], object]]:
    from benchmarks.gpu.sections import attention

    for dtype in (report.dtype, torch.bfloat16):
        yield from (partial(attention.launch, report, shape, dtype) for shape in attention.shapes())
    yield partial(attention.launch, report, attention.CAUSAL, report.dtype, causal=True)


def _kernels(report: Report) -> Iterator[Callable[[], object]]:
    from benchmarks.gpu.sections import kernels, pixels

    for work in kernels.works(report):
        for dtype in (report.dtype, torch.bfloat16):
            yield from (partial(kernels.launch, work, rows, dtype) for rows in (1, *work.only))
    yield from pixels.launches(report)


def _networks(
    report: Report, names: tuple[str, ...] = ("SD 1.5", "SD 2.1"), *, passes: bool = True
) -> Iterator[Callable[[], object]]:
    """Walk a step of one to four rows, as a server evaluates it, in both pixel modes; a whole pass; a decoding."""
    from benchmarks.gpu.subjects import networks
    from benchmarks.gpu.subjects.lab import Lab, Request

    def steps(name: str, exact: bool, twins: bool) -> None:
        lab = Lab(report, name, 2, exact=exact, eager=True, twins=twins, measure=False)
        for guidance in ((7.5, 1.0), (7.5, 7.5), (1.0,)):
            lab.evaluations([Request("euler_a", 4, scale, i) for i, scale in enumerate(guidance)], 1)

    def whole(name: str) -> None:
        net = networks.unet(report, name, ops=networks.ours(report))
        for rows in (1, 2):
            net(*networks.inputs(report, networks.unet_spec(report, name), rows, seed=0))

    def decoding() -> None:
        side = 8 if report.dry else 64
        latents = torch.randn(1, 4, side, side, device=report.device).to(report.dtype)
        decoder = networks.vae(report, ops=networks.ours(report))
        networks.our_kernels(report).to_uint8(decoder(latents.contiguous(memory_format=torch.channels_last)))

    for name in names:
        yield partial(steps, name, False, name == "small")
        yield partial(steps, name, True, False)
        if passes:
            yield partial(whole, name)
    yield decoding


def _first(report: Report) -> Iterator[Callable[[], object]]:
    from benchmarks.gpu.sections import first_kernels

    yield from first_kernels.launches(report)
    yield from _networks(report, ("small", "SD 1.5"), passes=False)


def _small(report: Report) -> Iterator[Callable[[], object]]:
    return _networks(report, ("small", "SD 1.5", "SD 2.1"))


WALKS: dict[str, Callable[[Report], Iterator[Callable[[], object]]]] = {
    "first": _first,
    "networks": _networks,
    "company": _small,
    "attention": _attention,
    "kernels": _kernels,
}


@contextlib.contextmanager
def compiling(index: int, count: int) -> Iterator[None]:
    """Launch no kernel of ours inside: every `count`-th variant, from the `index`-th on, is compiled instead."""
    from triton.runtime.jit import JITFunction

    function: Any = JITFunction
    genuine, met = function.run, set[str]()

    def run(kernel: Any, *arguments: object, grid: object, warmup: bool, **options: object) -> None:
        *_, binder = kernel.device_caches[0]
        _, specialization, given = binder(*arguments, **{"debug": False, "instrumentation_mode": "", **options})
        key = f"{kernel.__name__} {specialization} {sorted(given.items())}"
        if key not in met:
            met.add(key)
            if (len(met) - 1) % count == index:
                compiled = genuine(kernel, *arguments, grid=grid, warmup=True, **options)
                getattr(compiled, "run", None)  # its launcher, which a C compiler makes, and its way onto the card

    function.run = run
    try:
        yield
    finally:
        function.run = genuine


def main() -> int:
    walk, index, count = sys.argv[1], *map(int, sys.argv[2:])
    report = Report("warm", torch.device("cuda"), torch.float16, [], {}, until=float("inf"))
    failed = 0
    with compiling(index, count), torch.no_grad():
        for launch in WALKS[walk](report):
            try:
                launch()
                torch.cuda.empty_cache()
            except Exception as error:  # told by the case that measures it; a poisoned device fails all that follow
                failed += 1
                print(f"warm {index}: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
                if failed == 3:
                    break
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
