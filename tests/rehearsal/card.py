"""A stand-in of an NVIDIA card, for a process of its own: `insert()` puts it into torch and Triton for good.

Under `torch._subclasses.FakeTensorMode` a tensor of device "cuda" has a shape, a type, strides and no numbers. torch
refuses what mixes devices and whatever shapes or types do not fit; here a kernel's launch is also bound and specialised
as Triton does it, for the card's architecture, and refused where it is given a tensor of another device. So all host
code of the CUDA path runs, at full size and in seconds: what a CPU's tensors cannot show, because there is one device.
What is read back is ones. It proves nothing about numbers, streams or time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

ARCH = 90
NAME = "stand-in of an H200"
_READ = torch.ops.aten._local_scalar_dense.default
_EQUAL = torch.ops.aten.equal.default

launched: dict[str, set[str]] = {}  # a kernel's name, and what of its launches would be compiled apart


class Fake(FakeTensorMode):
    """Numbers that the host asks for are ones; generators, which would have to be of the card, are left out."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _READ:
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].dtype.is_floating_point else 1)
        if func is _EQUAL:
            return True
        if kwargs and "generator" in kwargs:
            kwargs = kwargs | {"generator": None}
        return super().__torch_dispatch__(func, types, args, kwargs)


class Counted(Fake):
    """Counts the bytes on the card that are alive, and the most that ever were; torch's own, no library's workspace."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in made if isinstance(made, list | tuple) else (made,):
            if isinstance(tensor, FakeTensor) and tensor.device.type == "cuda":
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // 512) * 512  # the allocator rounds to 512
        if key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.most = max(self.most, self.alive)

        def gone() -> None:
            self._known.discard(key)
            self.alive -= size

        weakref.finalize(storage, gone)


class _Stream:
    cuda_stream = 0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def wait_event(self, event: _Event) -> None:
        assert event.recorded, "a stream waits for an event that nobody has recorded"

    def wait_stream(self, stream: _Stream) -> None:
        pass


class _Event:
    def __init__(self, **_: object) -> None:
        self.recorded = False

    def record(self, stream: object = None) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded, "the host waits for an event that nobody has recorded"

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: _Event) -> float:
        return 1.0


class _Graph:
    def replay(self) -> None:
        pass


class _Generator(torch.Generator):
    """Of a CPU, whatever was asked for."""

    def __new__(cls, device: object = "cpu") -> Any:
        return super().__new__(cls)


class _Driver:
    """What Triton asks before it compiles or launches."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", ARCH, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    @staticmethod
    def is_active() -> bool:
        return True


def insert() -> None:
    """For the rest of this process. Errors: subprocess.CalledProcessError, OSError where there is no C++ compiler."""
    _guard()
    fake_tensor.init_gpu_context = lambda device: None
    _into_torch()
    triton.runtime.driver.set_active(_Driver())
    genuine: Any = JITFunction.run
    JITFunction.run = _launching(genuine if "REHEARSAL_COMPILES" in os.environ else None)


def _guard() -> None:
    home = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, "guard.so")
        command = [
            os.environ.get("CXX", "g++"),
            "-std=c++20",
            "-fPIC",
            "-shared",
            Path(__file__).with_name("guard.cpp"),
        ]
        subprocess.run([*command, "-o", made, f"-I{home}/include", f"-L{home}/lib", "-lc10"], check=True)
        ctypes.CDLL(str(made))


def _into_torch() -> None:
    cuda: Any = torch.cuda
    for name, value in {
        "is_available": True,
        "current_device": 0,
        "device_count": 1,
        "get_device_name": NAME,
        "get_device_capability": divmod(ARCH, 10),
        "synchronize": None,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 1,
        "memory_allocated": 1,
        "memory_reserved": 1,
        "mem_get_info": (1 << 36, 1 << 37),
        "graph_pool_handle": object(),
        "current_stream": _Stream(),
        "is_current_stream_capturing": False,
        "get_device_properties": SimpleNamespace(
            name=NAME,
            major=ARCH // 10,
            minor=ARCH % 10,
            multi_processor_count=132,
            total_memory=1 << 37,
            L2_cache_size=1,  # any set of inputs is beyond it: several would prove nothing more without numbers
        ),
    }.items():
        setattr(cuda, name, lambda *_, value=value, **__: value)
    cuda.Stream, cuda.Event, cuda.CUDAGraph = _Stream, _Event, _Graph
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.graph = _capturing
    whole: Any = torch
    whole.Generator = _Generator
    module: Any = torch.nn.Module
    module._apply = _apply
    tensor: Any = torch.Tensor
    tensor.data_ptr = lambda t: t.untyped_storage()._cdata * 4096 + t.storage_offset() * t.element_size()
    tensor.pin_memory = lambda t, *_: t
    tensor.record_stream = lambda t, stream: None
    tensor.__getitem__ = _getitem(torch.Tensor.__getitem__)
    tensor.numpy, tensor.tolist = _numpy(torch.Tensor.numpy), _tolist(torch.Tensor.tolist)


@contextlib.contextmanager
def _capturing(*_: object, **__: object) -> Iterator[None]:
    yield


def _getitem(genuine: Any) -> Any:
    """torch's own makes a list of rows a tensor of the card, past every mode; the result is laid out as its source."""

    def getitem(t: torch.Tensor, index: Any) -> torch.Tensor:
        if not isinstance(index, list):
            return genuine(t, index)
        last = t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last)
        rows = torch.stack([genuine(t, i) for i in index])
        return rows.contiguous(memory_format=torch.channels_last) if last else rows

    return getitem


def _numpy(genuine: Any) -> Any:
    def numpy(t: torch.Tensor, **options: object) -> Any:
        if not isinstance(t, FakeTensor):
            return genuine(t, **options)
        assert t.device.type == "cpu", "numpy() of a tensor on the card"
        return np.ones(tuple(t.shape), str(t.dtype).removeprefix("torch."))

    return numpy


def _tolist(genuine: Any) -> Any:
    return lambda t: _numpy(None)(t.cpu()).tolist() if isinstance(t, FakeTensor) else genuine(t)


def _apply(module: torch.nn.Module, change: Any, recurse: bool = True) -> torch.nn.Module:
    """nn.Module's own swaps tensors in place, which fake ones of another device refuse."""
    for each in module.modules():
        for store in (each._parameters, each._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    made = change(tensor.detach())
                    store[name] = torch.nn.Parameter(made, False) if store is each._parameters else made
    return module


def _launching(compiling: Any) -> Any:
    """A launch as far as JITFunction.run goes before it compiles; with `compiling`, that too, into Triton's cache."""

    def run(kernel: Any, *arguments: object, grid: Any, warmup: bool, **options: Any) -> None:
        for argument in arguments:
            if isinstance(argument, torch.Tensor):
                assert argument.device.type == "cuda", f"{kernel.__name__} is given a tensor of {argument.device}"
        sides = (31, 16, 16)  # bits: what CUDA's grids may have
        assert all(0 < side < 1 << bits for side, bits in zip(grid, sides, strict=False)), (kernel.__name__, grid)
        *_, backend, binder = kernel.device_caches[0]
        given = {"debug": False, "instrumentation_mode": "", **options}
        bound, specialization, given = binder(*arguments, **given)
        kernel._pack_args(backend, given, bound, specialization, given)
        key = " ".join(str(value) for value in specialization) + str(sorted(given.items()))
        new = key not in launched.setdefault(kernel.__name__, set())
        launched[kernel.__name__].add(key)
        if compiling and new:
            compiling(kernel, *arguments, grid=grid, warmup=True, **options)

    return run
