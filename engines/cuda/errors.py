"""What torch, cuDNN, cuBLAS and Triton raise on a GPU, as errors of ours: whose each is, and what mends it.

Three kinds. No room: the device is intact, and whoever asked may ask for less (OutOfMemory). A machine that cannot run
this: a compiler, a version, a card (BackendError). All else that comes from CUDA may have poisoned its context, so that
nothing after it can be believed (DeviceError). The messages are those of torch 2.13 (c10/cuda/CUDAException.cpp,
CUDACachingAllocator.cpp) and of Triton 3.6 and 3.7 (backends/nvidia/driver.c, runtime/build.py).
"""

from __future__ import annotations

import contextlib
import errno
import gc
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from engines.errors import BackendError, DeviceError, OutOfMemory
from engines.machine import toolchain
from pipeline.errors import LatentdError

_Made = TypeVar("_Made")

_CUDA, _TRITON = "CUDA error: ", "Triton Error [CUDA]: "
# The allocator's: "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB of which 41.56 MiB is free.
# Including non-PyTorch memory, this process has 23.60 GiB memory in use."
_ROOM = re.compile(
    r"Tried to allocate ([\d.]+ \w+)\..* has a total capaci?ty of ([\d.]+ \w+) of which ([\d.]+ \w+) is free\."
    r"(?:.*this process has ([\d.]+ \w+) memory in use)?",
    re.DOTALL,
)
# What the libraries say when they find no room, and nothing is wrong with the device.
_FULL = (
    f"{_CUDA}out of memory",
    f"{_TRITON}out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # cublasCreate, which takes some MB
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "unable to find an engine to execute this computation",  # cuDNN: each of them wanted more workspace
)
_OTHER_CARD = (
    "no kernel image is available",
    "device kernel image is invalid",
    "the provided PTX was compiled with an unsupported toolchain",
)
_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_CUDAS = (_CUDA, _TRITON, "cuDNN error", "cuBLAS error", "CUDA driver error")


@contextlib.contextmanager
def device_errors() -> Iterator[None]:
    """What is raised inside becomes OutOfMemory, BackendError or DeviceError; what is none of CUDA's goes through."""
    try:
        yield
    except Exception as error:
        if (told := translated(error)) is None or told is error:
            raise
        raise told from error


def translated(error: BaseException) -> LatentdError | None:
    """The error of ours that this is; None where it is not the device's, nor a compiler's of its kernels."""
    words = str(error)
    if isinstance(error, LatentdError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory(_room(words))
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in words:
        return BackendError(f"the machine's own memory is full, not the GPU's: {_first(words) or 'no room'}")
    if isinstance(error, RuntimeError):
        if any(full.lower() in words.lower() for full in _FULL):
            return OutOfMemory(f"the GPU's memory is full ({_first(words)}){_free()}")
        if any(other in words for other in _OTHER_CARD):
            return BackendError(
                f"torch {torch.__version__} or triton {toolchain.installed()} has no code for this GPU "
                f"({_first(words)}): install the versions that the extra pins, pip install -e '.[export,kernels]'"
            )
        if isinstance(error, torch.AcceleratorError) or words.startswith(_CUDAS):
            return _failed(words, error.__context__)
    return _of_triton(error, words)


def with_room(make: Callable[[], _Made], what: str, mend: str, drop: Callable[[], object] = lambda: None) -> _Made:
    """`make()`. Where memory runs out, what it had taken is given back, and the error says what it was for.

    `drop` forgets what was kept of it elsewhere. Errors: OutOfMemory, and those of `device_errors`.
    """
    try:
        with device_errors():
            return make()
    except OutOfMemory as error:
        why = str(error)
    # Only now: while the error lives, its frames hold what was half made.
    drop()
    gc.collect()
    if torch.cuda.is_initialized():
        with device_errors():
            torch.cuda.empty_cache()
    raise OutOfMemory(f"{what}: {why}; {mend}")


def _room(words: str) -> str:
    if (found := _ROOM.search(words)) is None:
        return f"the GPU's memory is full ({_first(words)}){_free()}"
    asked, total, free, own = found.groups()
    held = f", this process holds {own}" if own else ""
    return f"the GPU's memory is full: {asked} more was asked for, {free} of {total} is free{held}"


def _free() -> str:
    """The figures where an error has none; nothing where CUDA does not answer any more."""
    try:
        if not torch.cuda.is_initialized():
            return ""
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:
        return ""
    return f": {free / 2**30:.2f} GiB of {total / 2**30:.2f} GiB is free"


def _failed(words: str, behind: BaseException | None) -> DeviceError:
    """`behind`: what was being handled when this was raised."""
    told = f"cuda failed: {_first(words)}"
    if "capture" in words:
        # What ends a capture is followed by an error of its clean-up, which tells only that it is invalid; nor may the
        # process go on: torch's allocator is then still in the capture (pytorch/pytorch#187795).
        if behind is not None:
            cause = _room(str(behind)) if isinstance(behind, torch.OutOfMemoryError) else _first(str(behind))
            told = f"cuda failed in a capture: {cause or type(behind).__name__}"
        return DeviceError(f"{told}{_free()}; if that is little, lower --seats, --max-steps or --sizes")
    return DeviceError(f"{told}; `dmesg | grep Xid` has the driver's view, CUDA_LAUNCH_BLOCKING=1 names the call")


def _of_triton(error: BaseException, words: str) -> BackendError | None:
    """A kernel that could not be compiled, or its launcher, or could not be kept."""
    if "Failed to find C compiler" in words:
        return BackendError(toolchain.NO_COMPILER)
    if isinstance(error, subprocess.CalledProcessError):
        command = error.cmd if isinstance(error.cmd, str) else " ".join(map(str, error.cmd[:1]))
        return BackendError(
            f"{command} ended with status {error.returncode} on Triton's launcher: it needs a C compiler and Python's "
            f"header, {toolchain.MEND}; its own words are above"
        )
    if isinstance(error, AssertionError) and "libcuda.so" in words:
        return BackendError(
            "Triton does not find libcuda.so.1, the driver's library: run ldconfig, or set TRITON_LIBCUDA_PATH to its "
            "folder"
        )
    if "Could not create or locate cache dir" in words:
        return BackendError(f"Triton has no folder for its kernels: {toolchain.MEND_CACHE}")
    if "No usable temporary directory" in words:
        return BackendError("Triton finds no temporary folder that it can write: set TMPDIR to one")
    if isinstance(error, OSError) and error.errno in _NOT_WRITTEN:
        where = error.filename or toolchain.cache_folder()
        return BackendError(f"Triton cannot write {where}: {error.strerror}; {toolchain.MEND_CACHE}")
    if type(error).__module__.partition(".")[0] == "triton":
        return BackendError(
            f"triton {toolchain.installed()} cannot compile a kernel of ours for this GPU ({type(error).__name__}: "
            f"{_first(words)}): {toolchain.MEND_VERSION}"
        )
    return None


def _first(words: str) -> str:
    """The first line, without what it begins with."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return lines[0].removeprefix(_CUDA).removeprefix(_TRITON)[:300] if lines else ""
