"""Device times: by events, as replays of a CUDA graph, over inputs and results that rotate past the L2 cache."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Run = Callable[[], object]
_DRY_RUNS = 2


def on_cpu(run: Run, repeats: int = _DRY_RUNS) -> list[float]:
    """Time a few runs: wall-clock seconds of each."""
    clock = [(time.perf_counter(), run(), time.perf_counter()) for _ in range(repeats)]
    return [max(end - begin, 1e-9) for begin, _, end in clock]


def by_events(run: Run, *, seconds: float = 0.15, least: int = 10, most: int = 100) -> list[float]:
    """Time `least` to `most` runs, about `seconds` in all: seconds of each; launch gaps count."""
    if not torch.cuda.is_available():
        return on_cpu(run)
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    repeats = max(least, min(most, math.ceil(seconds / max(time.perf_counter() - start, 1e-6))))
    begin, end = ([torch.cuda.Event(enable_timing=True) for _ in range(repeats)] for _ in range(2))
    for i in range(repeats):
        begin[i].record()
        run()
        end[i].record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in zip(begin, end, strict=True)]


@functools.cache
def _capturing() -> torch.cuda.Stream:
    """Return the stream that captures, one for all: cuBLAS keeps a workspace a stream."""
    return torch.cuda.Stream()


def captured(run: Callable[[], Tensor], warm: int = 3) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Capture `run` as a CUDA graph; returns it and what a replay writes.

    Warmed up first, on the stream that captures: library handles, workspaces and choices of algorithm may not be made
    in a capture.
    """
    stream = _capturing()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = run()
    return graph, out


def in_graph(runs: Sequence[Run], *, seconds: float = 0.1) -> list[float]:
    """Time one run, in seconds: a graph of all of them, one after the other, divided by how many they are.

    Give one run for each set of inputs (`sets`); small ones are repeated until a replay takes about a millisecond,
    so that the gap between replays does not count. Results live until all runs have one: freed at once, each would be
    written over the last, in the cache, and a kernel that is bound by memory would seem faster than memory is.
    """
    if not torch.cuda.is_available():
        return on_cpu(runs[0])
    for run in runs[:2]:
        run()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(3):
        runs[0]()
    torch.cuda.synchronize()
    guess = (time.perf_counter() - begin) / 3  # too long where launches cost more than the work
    repeats = max(1, min(math.ceil(1e-3 / (guess * len(runs))), 8))

    def all_of_them() -> Tensor:
        for _ in range(repeats):
            kept = [run() for run in runs]
            del kept
        return torch.empty(0, device="cuda")

    graph, _ = captured(all_of_them, warm=1)
    count = repeats * len(runs)
    return [value / count for value in by_events(graph.replay, seconds=seconds, most=50)]


def sets(bytes_of_one: float) -> int:
    """Count the sets of inputs and outputs of so many bytes that no longer fit in the L2 cache, three times over.

    At most 64, so that what is below 3 MB may stay there, as it does in a network.
    """
    if not torch.cuda.is_available():
        return 1
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    cache = getattr(facts, "L2_cache_size", 60 << 20)
    return max(1, min(64, math.ceil(3 * cache / max(bytes_of_one, 1))))


def error(got: Tensor, right: Tensor) -> float:
    """Return ||got - right|| / ||right||, in float64; not a number or infinite if anything in `got` is."""
    got, right = got.detach().double(), right.detach().double()
    return float((got - right).norm() / right.norm().clamp_min(1e-30))


def decibels(got: Tensor, right: Tensor) -> float:
    """Return the PSNR in dB over the range of `right`; 999 where they are equal."""
    worst = float((got.double() - right.double()).square().mean())
    span = float(right.double().max() - right.double().min())
    return 10 * math.log10(span**2 / worst) if worst else 999.0
