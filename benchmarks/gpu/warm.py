"""Compiles the kernels of `attention`, `kernels` and the networks in several processes at once, into Triton's cache.

One after the other, some hundred compilations would take the minutes that are meant for measuring. Each process is
`python -m benchmarks.gpu.warm WHAT I N`: it launches every N-th kernel call of WHAT, from the I-th on. What fails here
is told by the case that measures it.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.check import AbsentError, Check
from benchmarks.gpu.here import needed
from benchmarks.gpu.networks import TOKENS

_ROOT = Path(__file__).parent.parent.parent
_TEXTS = 24960  # keys and values of the 16 cross-attentions of SD 1.5, and of SD 2.1: numbers of a token
_SECONDS = 60.0  # then whoever is left is ended: the measuring process compiles what is missing


def launches(check: Check) -> list[Callable[[], object]]:
    """One call of each kernel at each shape and in each type that is measured."""
    from benchmarks.gpu import attention, kernels

    dtypes = (torch.float16, torch.bfloat16)
    found: list[Callable[[], object]] = []
    for shape in attention.shapes():
        found += [partial(attention.launch, check, shape, dtype) for dtype in dtypes[: 2 if shape.rows == 2 else 1]]
    for rows in kernels.ROWS:
        for work in kernels.works(check):
            if rows in work.only:
                found += [partial(kernels.launch, work, rows, dtype) for dtype in dtypes[: 2 if rows == 2 else 1]]
    found += _networks(check)
    for shape in attention.TILED:  # what is compiled differs by what is attended to, not by rows
        found += [partial(attention.launch_tiles, check, shape, i) for i in range(20 if shape.rows == 32 else 0)]
    return found


def _networks(check: Check) -> list[Callable[[], object]]:
    """What else the UNet and the decoder launch: left to their first pass, all of it would be one case's minute."""
    from benchmarks.gpu import attention, columns

    unet, decoder = needed("kernels.group_norm_silu", "UNET", "DECODER")
    found = _passes(check, (*unet, *decoder), (*attention.SD15, *attention.SD21))
    found.append(partial(_norm, check, *decoder[0], False, False))
    for rows in columns.ROWS:
        for op in columns.inner(check, rows):
            found.append(partial(columns.launch, check, op))
            found += [partial(columns.launch_tiles, check, op, i) for i in range(8 if columns.is_usual(op) else 0)]
    return found


def dependents(check: Check) -> list[Callable[[], object]]:
    """What a pass of SD 1.5's UNet launches, as dependent launches: for the section `forms`."""
    from benchmarks.gpu import attention, kernels

    dependent = needed("kernels.dependent", "dependent_launches")()
    found = _passes(check, needed("kernels.group_norm_silu", "UNET"), attention.SD15)
    for t, heads, d in attention.SD15:
        found.append(partial(attention.launch, check, attention.Shape(2, t, t, heads, d), check.dtype))
    for work in kernels.works(check):
        if work.what in ("layer_norm", "geglu"):
            found.append(partial(kernels.launch, work, 2, check.dtype))
    return [dependent(launch) for launch in found]


def _passes(
    check: Check, norms: Iterable[tuple[int, int]], attentions: Iterable[tuple[int, int, int]]
) -> list[Callable[[], object]]:
    """Normalisations (positions, channels) and cross-attentions (positions, heads, width of a head) of networks."""
    found: list[Callable[[], object]] = [partial(_norm, check, *size, False, True) for size in norms]
    for size in ((4096, 320), (1024, 640), (256, 1280), (64, 1280)):
        found += [partial(_norm, check, *size, *form) for form in ((True, True), (True, False), (False, False))]
    return found + [partial(_cross, check, *shape) for shape in attentions]


def _norm(check: Check, positions: int, width: int, shifted: bool, silu: bool) -> Tensor:
    normalise, side = needed("kernels.group_norm_silu", "group_norm_silu"), math.isqrt(positions)
    x = torch.randn(1, width, side, side, device=check.device).to(check.dtype)
    x, weight = x.contiguous(memory_format=torch.channels_last), x[0, :, 0, 0].contiguous()
    shift = weight[None] if shifted else None
    return normalise(x, weight, weight, 32, 1e-5, shift=shift, silu=silu)


def _cross(check: Check, t: int, heads: int, d: int) -> Tensor:
    """A pass of the whole network makes keys and values of all its blocks in one product: positions lie further apart
    than where a step has copied them."""
    kernel, width = needed("kernels.attention", "attention"), heads * d
    q = torch.randn(1, t, width, device=check.device).to(check.dtype)
    texts = torch.randn(1, TOKENS, _TEXTS, device=check.device).to(check.dtype)
    return kernel(q, texts[..., :width], texts[..., width : 2 * width], heads)


def compile_ahead(check: Check, what: str = "launches") -> None:
    """`what`: the function of this file whose kernel calls are launched."""
    if check.dry:
        raise AbsentError("the interpreter compiles nothing")
    start, count = time.monotonic(), max(1, min(12, len(os.sched_getaffinity(0)) - 1))
    command = [sys.executable, "-m", "benchmarks.gpu.warm", what]
    processes = [subprocess.Popen([*command, str(i), str(count)], cwd=_ROOT) for i in range(count)]
    late = 0
    for process in processes:
        try:
            process.wait(max(0.1, start + min(_SECONDS, check.seconds_left / 2) - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            late += 1
    note = f"{count} processes, {late} of them ended before they were done"
    check.row("compile ahead", what, "triton", "s", [time.monotonic() - start], note=note)


def main() -> int:
    what, index, count = {"launches": launches, "dependents": dependents}[sys.argv[1]], *map(int, sys.argv[2:])
    check = Check("warm", torch.device("cuda"), torch.float16, [], {}, until=float("inf"))
    failed = 0
    for launch in what(check)[index::count]:
        try:
            with torch.no_grad():
                launch()
            torch.cuda.empty_cache()
        except Exception as error:  # told by the case that measures it; a poisoned device fails all that follow
            failed += 1
            print(f"warm {index}: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
            if failed == 3:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
