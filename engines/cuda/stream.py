"""A CUDA stream and all that is done with one; over CPU tensors the same calls, where everything happens in order.

What only a GPU can run of encoding, stepping and decoding is in this file, so that a CPU tests all the rest.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.cuda.errors import device_errors
from engines.errors import DeviceError, OutOfMemory
from pipeline.arrays import F32

# Where copies of a failed device's tensors were to arrive. torch's allocator asks CUDA for an event when such memory is
# freed, from within a destructor: after an error that CUDA keeps, that ends the process before clients are told why.
_lost: list[list[Tensor]] = []

# Held by whoever launches, captures or synchronises: two models may be in one process, each with a thread of its own,
# and what one launches or frees must not fall into the other's capture. Never run on a GPU.
ALONE = threading.RLock()

_WARM = 3  # runs before a capture: library handles, workspaces, compiled kernels, choices of algorithm


class Mark:
    """A point in a stream's work: an event, or nothing where work is done when its call returns."""

    def __init__(self, event: torch.cuda.Event | None) -> None:
        self.event = event

    def done(self) -> bool:
        """Return whether the work before the mark is done."""
        with device_errors():
            return self.event is None or self.event.query()

    def wait(self) -> None:
        """Let the host sleep, and not spin, until the work before the mark is done."""
        if self.event is not None:
            with device_errors():
                self.event.synchronize()


class Replay:
    """A captured graph, and the function that it was captured from, which holds all that the graph has addresses of.

    CUDA and torch keep none of that: a buffer, or a TensorRT engine, that only the function knew of would be freed.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, run: Callable[[], None]) -> None:
        self._graph, self._run = graph, run

    def __call__(self) -> None:
        self._graph.replay()


class Stream:
    """Work in order. Its captured functions share one memory pool: they run one at a time and leave nothing in it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cuda = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pool = torch.cuda.graph_pool_handle() if self._cuda is not None else None
        self._pooled = 0  # bytes that the largest capture took of it
        # All of them, also those of a lane that was given up. cuBLAS has one workspace a stream, whose address is in
        # every graph that was captured there, and torch 2.13 frees it when any of these is destroyed
        # (pytorch/pytorch#193402). Rejected: a stream a lane, as streams share no memory of a pool, and each has a
        # workspace (32 MiB on sm_90). What is kept is the graph without its buffers, and its pool stays for the others.
        self._graphs: list[torch.cuda.CUDAGraph] = []

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Make what is called inside work of this stream. Errors: those of engines.cuda.errors.device_errors."""
        if self._cuda is None:
            with device_errors(), torch.inference_mode():
                yield
            return
        with ALONE, device_errors(), torch.inference_mode(), torch.cuda.stream(self._cuda):
            yield

    def captured(self, run: Callable[[], None]) -> Callable[[], None]:
        """Capture `run`, which reads and writes fixed buffers only, as one CUDA graph; on a CPU return `run` itself.

        `run` must hold whatever it touches, and not what holds the replay: that would be a cycle, freed late. The graph
        replays on the stream that is current. The largest is captured first: the pool that it leaves suffices for the
        others. Errors: OutOfMemory, before a capture is begun.
        """
        if self._cuda is None:
            return run
        with self.here():
            for _ in range(_WARM - 1):
                run()
            self._ensure_memory(self._taken_by(run))
            self._graphs.append(graph := torch.cuda.CUDAGraph())
            # thread_local: other threads may wait for their events meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._cuda, capture_error_mode="thread_local"):
                run()
        return Replay(graph, run)

    def _taken_by(self, run: Callable[[], None]) -> int:
        """Run it; return the bytes that torch's allocator took from the device, in large pieces as for a capture."""
        assert self._cuda is not None
        self._cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(self.device)
        run()
        self._cuda.synchronize()
        return torch.cuda.memory_reserved(self.device) - before

    def _ensure_memory(self, taken: int) -> None:
        """Check that there is memory to capture what took `taken` bytes, beside what the pool has. Errors: OutOfMemory.

        It is checked before, because where memory runs out in a capture, torch's allocator frees some, which
        invalidates the capture (pytorch/pytorch#187795).
        """
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        if taken - self._pooled > free:
            more, *sizes = (f"{size / 2**30:.2f} GiB" for size in (taken - self._pooled, free, total))
            raise OutOfMemory(f"the GPU's memory is full: a graph needs {more} more, {sizes[0]} of {sizes[1]} is free")
        self._pooled = max(self._pooled, taken)

    def mark(self) -> Mark:
        """Return a mark after all work so far."""
        if self._cuda is None:
            return Mark(None)
        event = torch.cuda.Event(blocking=True)
        event.record(self._cuda)
        return Mark(event)

    def after(self, mark: Mark, *read: Tensor) -> None:
        """Let work from now on wait for `mark` of another stream, whose tensors `read` it will read."""
        if self._cuda is None:
            return
        assert mark.event is not None
        self._cuda.wait_event(mark.event)
        for tensor in read:
            tensor.record_stream(self._cuda)

    def upload(self, target: Tensor, values: NDArray[np.generic]) -> None:
        """Copy `values` into `target`, in this stream's order; the caller may write over `values` at once.

        torch's pinned allocator does not hand out the staging buffer again before its copy is done.
        """
        source = torch.from_numpy(np.array(values))
        if self._cuda is None:
            target.copy_(source)
        else:
            target.copy_(source.pin_memory(), non_blocking=True)

    def new(self, values: NDArray[np.generic]) -> Tensor:
        """Return a tensor of this device with these values."""
        source = torch.from_numpy(np.array(values))
        target = torch.empty(source.shape, dtype=source.dtype, device=self.device)
        self.upload(target, values)
        return target

    def fetch(self, *tensors: Tensor) -> Fetched:
        """Copy tensors to the host, once this stream's work so far is done."""
        if self._cuda is None:
            return Fetched(self.mark(), [tensor.clone() for tensor in tensors])
        targets = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
        for target, tensor in zip(targets, tensors, strict=True):
            target.copy_(tensor, non_blocking=True)
        return Fetched(self.mark(), targets)


class Fetched:
    """Tensors on their way to the host."""

    def __init__(self, mark: Mark, targets: list[Tensor]) -> None:
        self._mark, self._targets = mark, targets

    def ready(self) -> bool:
        return self._mark.done()

    def arrays(self) -> list[NDArray[np.generic]]:
        try:
            self._mark.wait()
        except DeviceError:
            _lost.append(self._targets)
            raise
        return [target.numpy() for target in self._targets]

    def floats(self) -> F32:
        """Return the one array as a copy: contexts are remembered, and pinned memory is not for keeping."""
        (array,) = self.arrays()
        return array.astype(np.float32)


class FetchedArray:
    """One float array on its way to the host: see engines.backend.Pending."""

    def __init__(self, fetched: Fetched) -> None:
        self._fetched = fetched

    def ready(self) -> bool:
        return self._fetched.ready()

    def get(self) -> F32:
        (array,) = self._fetched.arrays()
        return array.astype(np.float32, copy=False)


class OnDevice:
    """A tensor that `mark` completes and that may stay where it is; `get` fetches it, through `stream`."""

    def __init__(self, tensor: Tensor, mark: Mark, stream: Stream) -> None:
        self.tensor, self.mark, self._stream = tensor, mark, stream

    def ready(self) -> bool:
        return self.mark.done()

    def get(self) -> F32:
        return self.fetched().get()

    def fetched(self) -> FetchedArray:
        with self._stream.here():
            self._stream.after(self.mark, self.tensor)
            return FetchedArray(self._stream.fetch(self.tensor))
