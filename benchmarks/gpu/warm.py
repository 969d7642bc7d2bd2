"""Compiles what the sections launch, in several processes at once, into Triton's cache.

One after the other, some fifty compilations would take the minutes that are meant for measuring. Each process is
`python -m benchmarks.gpu.warm WALK I N`: it does all that WALK does but launching kernels of ours, and compiles every
N-th variant that it meets, from the I-th on. What fails here is told by the case that measures it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.check import AbsentError, Case, Check

_ROOT = Path(__file__).parent.parent.parent
_SECONDS = 60.0  # then whoever is left is ended: the measuring process compiles what is missing
_BYTES = 4 << 30  # of a process on the card: SD 1.5's weights, and a pass


def _attention(check: Check) -> Iterator[Callable[[], object]]:
    from benchmarks.gpu import attention

    for dtype in (check.dtype, torch.bfloat16):
        yield from (partial(attention.launch, check, shape, dtype) for shape in attention.shapes())
    yield partial(attention.launch, check, attention.CAUSAL, check.dtype, causal=True)


def _kernels(check: Check) -> Iterator[Callable[[], object]]:
    from benchmarks.gpu import kernels, pixels

    for work in kernels.works(check):
        for dtype in (check.dtype, torch.bfloat16):
            yield from (partial(kernels.launch, work, rows, dtype) for rows in (1, *work.only))
    yield from pixels.launches(check)


def _networks(
    check: Check, names: tuple[str, ...] = ("SD 1.5", "SD 2.1"), *, passes: bool = True
) -> Iterator[Callable[[], object]]:
    """A step of one to four rows, as a server evaluates it, in both pixel modes; a whole pass; a picture's decoding."""
    from benchmarks.gpu import networks
    from benchmarks.gpu.lab import Lab, Request

    def steps(name: str, exact: bool, twins: bool) -> None:
        lab = Lab(check, name, 2, exact=exact, eager=True, twins=twins, measure=False)
        for guidance in ((7.5, 1.0), (7.5, 7.5), (1.0,)):
            lab.evaluations([Request("euler_a", 4, scale, i) for i, scale in enumerate(guidance)], 1)

    def whole(name: str) -> None:
        net = networks.unet(check, name, ops=networks.ours(check))
        for rows in (1, 2):
            net(*networks.inputs(check, networks.unet_spec(check, name), rows, seed=0))

    def decoding() -> None:
        side = 8 if check.dry else 64
        latents = torch.randn(1, 4, side, side, device=check.device).to(check.dtype)
        decoder = networks.vae(check, ops=networks.ours(check))
        networks.our_kernels(check).to_uint8(decoder(latents.contiguous(memory_format=torch.channels_last)))

    for name in names:
        yield partial(steps, name, False, name == "small")
        yield partial(steps, name, True, False)
        if passes:
            yield partial(whole, name)
    yield decoding


def _first(check: Check) -> Iterator[Callable[[], object]]:
    from benchmarks.gpu import first_kernels

    yield from first_kernels.launches(check)
    yield from _networks(check, ("small", "SD 1.5"), passes=False)


def _small(check: Check) -> Iterator[Callable[[], object]]:
    return _networks(check, ("small", "SD 1.5", "SD 2.1"))


WALKS: dict[str, Callable[[Check], Iterator[Callable[[], object]]]] = {
    "first": _first,
    "networks": _networks,
    "company": _small,
    "attention": _attention,
    "kernels": _kernels,
}


def case(check: Check, walk: str, share: float = 0.5) -> Case:
    """The first one of a section: what its others launch, compiled, unless the cache says that this was done before.

    It may take `share` of the time that the section has left.
    """
    return Case("compile ahead", partial(_compile_ahead, check, walk, share), seconds=_SECONDS + 20)


def _compile_ahead(check: Check, walk: str, share: float) -> None:
    if check.dry:
        raise AbsentError("the interpreter compiles nothing")
    from engines import toolchain

    done = toolchain.cache_folder() / f"walked-{walk}-{_sources()}"
    if done.exists():
        check.row("compile ahead", walk, "triton", "s", [0.0], note="done before")
        return
    start, free = time.monotonic(), torch.cuda.mem_get_info()[0]
    until = start + min(_SECONDS, share * check.seconds_left)
    count = max(1, min(12, len(os.sched_getaffinity(0)) - 1, free // _BYTES))
    command = [sys.executable, "-m", "benchmarks.gpu.warm", walk]
    processes = [subprocess.Popen([*command, str(i), str(count)], cwd=_ROOT) for i in range(count)]
    late = 0
    for process in processes:
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            late += 1
    if not any(process.returncode for process in processes) and not late:
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()
    note = f"{count} processes, {late} of them ended before they were done"
    check.row("compile ahead", walk, "triton", "s", [time.monotonic() - start], note=note)


def _sources() -> str:
    """What a walk's variants depend on."""
    patterns = ("kernels/*.py", "model/*.py", "engines/cuda_*.py", "benchmarks/gpu/warm.py")
    files = sorted(path for pattern in patterns for path in _ROOT.glob(pattern))
    versions = f"{importlib.metadata.version('triton')} {torch.cuda.get_device_capability()}"
    return hashlib.sha256(b"".join(path.read_bytes() for path in files) + versions.encode()).hexdigest()[:16]


@contextlib.contextmanager
def compiling(index: int, count: int) -> Iterator[None]:
    """Inside, no kernel of ours is launched: every `count`-th variant, from the `index`-th on, is compiled instead."""
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
                made = genuine(kernel, *arguments, grid=grid, warmup=True, **options)
                getattr(made, "run", None)  # its launcher, which a C compiler makes, and its way onto the card

    function.run = run
    try:
        yield
    finally:
        function.run = genuine


def main() -> int:
    walk, index, count = sys.argv[1], *map(int, sys.argv[2:])
    check = Check("warm", torch.device("cuda"), torch.float16, [], {}, until=float("inf"))
    failed = 0
    with compiling(index, count), torch.no_grad():
        for launch in WALKS[walk](check):
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
