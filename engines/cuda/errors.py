"""What torch, cuDNN, cuBLAS and Triton raise on a GPU, as errors of ours: whose each is, and what mends it.

There are three kinds. Memory is full: the device is intact, and whoever wanted it may want less (OutOfMemory). The
machine cannot run this: a compiler, a version or a card is in the way (BackendError). All else that comes from CUDA may
have poisoned its context, so that nothing after it can be believed (DeviceError).

The messages are those of torch 2.13 (c10/cuda/CUDAException.cpp, CUDACachingAllocator.cpp) and of Triton 3.6 and 3.7
(backends/nvidia/driver.c, runtime/build.py).
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
from pipeline.extras import install

_Result = TypeVar("_Result")

_CUDA, _TRITON = "CUDA error: ", "Triton Error [CUDA]: "
# The allocator's: "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB of which 41.56 MiB is free.
# Including non-PyTorch memory, this process has 23.60 GiB memory in use."
_REFUSED = re.compile(
    r"Tried to allocate ([\d.]+ \w+)\..* has a total capaci?ty of ([\d.]+ \w+) of which ([\d.]+ \w+) is free\."
    r"(?:.*this process has ([\d.]+ \w+) memory in use)?",
    re.DOTALL,
)
# What the libraries say when memory is full, and nothing is wrong with the device.
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
    """Turn what is raised inside into OutOfMemory, BackendError or DeviceError; what is none of CUDA's goes through."""
    try:
        yield
    except Exception as error:
        if (ours := translated(error)) is None or ours is error:
            raise
        raise ours from error


def translated(error: BaseException) -> LatentdError | None:
    """Return the error of ours for this one; None where neither the device nor a compiler of its kernels raised it."""
    words = str(error)
    if isinstance(error, LatentdError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory(_why_full(words))
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in words:
        return BackendError(f"the machine's own memory is full, not the GPU's: {_first(words) or 'no room'}")
    if isinstance(error, RuntimeError):
        if any(full.lower() in words.lower() for full in _FULL):
            return OutOfMemory(f"the GPU's memory is full ({_first(words)}){_free()}")
        if any(other in words for other in _OTHER_CARD):
            return BackendError(
                f"torch {torch.__version__} or triton {toolchain.installed()} has no code for this GPU "
                f"({_first(words)}): install the versions that the extra pins, {install('export', 'kernels')}"
            )
        if isinstance(error, torch.AcceleratorError) or words.startswith(_CUDAS):
            return _failed(words, error.__context__)
    return _of_triton(error, words)


def with_memory(
    make: Callable[[], _Result], what: str, mend: str, drop: Callable[[], object] = lambda: None
) -> _Result:
    """Return `make()`. Where memory runs out, give back what it had taken, and say in the error what it was for.

    `drop` forgets what `make` has left elsewhere. Errors: OutOfMemory, and those of `device_errors`.
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


def _why_full(words: str) -> str:
    """Say that the GPU's memory is full, with the allocator's figures where `words` has them."""
    if (match := _REFUSED.search(words)) is None:
        return f"the GPU's memory is full ({_first(words)}){_free()}"
    wanted, total, free, used = match.groups()
    held = f", this process holds {used}" if used else ""
    return f"the GPU's memory is full: {wanted} more was asked for, {free} of {total} is free{held}"


def _free() -> str:
    """Say how much memory is free, for an error without figures; "" where CUDA does not answer any more."""
    try:
        if not torch.cuda.is_initialized():
            return ""
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:
        return ""
    return f": {free / 2**30:.2f} GiB of {total / 2**30:.2f} GiB is free"


def _failed(words: str, behind: BaseException | None) -> DeviceError:
    """Return the error for a failure of CUDA; `behind` is the exception that was being handled when it was raised."""
    sentence = f"cuda failed: {_first(words)}"
    if "capture" in words:
        # What ends a capture is followed by an error of its clean-up, which tells only that it is invalid; nor may the
        # process go on: torch's allocator is then still in the capture (pytorch/pytorch#187795).
        if behind is not None:
            cause = _why_full(str(behind)) if isinstance(behind, torch.OutOfMemoryError) else _first(str(behind))
            sentence = f"cuda failed in a capture: {cause or type(behind).__name__}"
        return DeviceError(f"{sentence}{_free()}; if that is little, lower --seats, --max-steps or --sizes")
    return DeviceError(f"{sentence}; `dmesg | grep Xid` has the driver's view, CUDA_LAUNCH_BLOCKING=1 names the call")


def _of_triton(error: BaseException, words: str) -> BackendError | None:
    """Return the error for a kernel, or its launcher, that could not be compiled or kept; None for anything else."""
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
    """Return the first line, without the prefix that the library gives it."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return lines[0].removeprefix(_CUDA).removeprefix(_TRITON)[:300] if lines else ""
