"""What torch and Triton say on a GPU, in their own words, and the errors of ours that these become."""

from __future__ import annotations

import errno
import subprocess
import weakref
from pathlib import Path

import pytest
import torch
from triton.compiler.errors import CompilationError
from triton.runtime.build import compile_module_from_src
from triton.runtime.errors import OutOfResources, PTXASError

from engines.cuda.errors import device_errors, translated, with_memory
from engines.errors import BackendError, DeviceError, NoEngine, OutOfMemory

# c10/cuda/CUDACachingAllocator.cpp, as people report it for torch 2.6 to 2.9.
FULL = (
    "CUDA out of memory. Tried to allocate 22.78 GiB. GPU 0 has a total capacity of 31.47 GiB of which 12.73 GiB is "
    "free. Including non-PyTorch memory, this process has 18.73 GiB memory in use. Of the allocated memory 9.08 GiB is "
    "allocated by PyTorch, and 9.35 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is "
    "large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation"
)
ALONE = FULL.replace("12.73 GiB", "0 bytes").replace(" Including non-PyTorch memory,", " Process 7 has 1.00 GiB;")
# c10/cuda/CUDAException.cpp: what happened, where it is explained, and that it may have happened elsewhere.
ASYNC = (
    "\nSearch for `cudaErrorIllegalAddress' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html "
    "for more information.\nCUDA kernel errors might be asynchronously reported at some other API call, so the "
    "stacktrace below might be incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1.\n"
)


def accelerator(words: str) -> Exception:
    return torch.AcceleratorError(f"CUDA error: {words}{ASYNC}")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            torch.OutOfMemoryError(FULL),
            "the GPU's memory is full: 22.78 GiB more was asked for, 12.73 GiB of 31.47 GiB is free, this process "
            "holds 18.73 GiB",
        ),
        (torch.OutOfMemoryError(ALONE), "22.78 GiB more was asked for, 0 bytes of 31.47 GiB is free"),
        (torch.OutOfMemoryError("other words\nin lines"), r"the GPU's memory is full \(other words\)"),
        (accelerator("out of memory"), r"the GPU's memory is full \(out of memory\)"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            r"full \(CUBLAS_STATUS_ALLOC_FAILED when calling",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "CUDNN_STATUS_ALLOC_FAILED"),
        (RuntimeError("GET was unable to find an engine to execute this computation"), "unable to find an engine"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), r"full \(out of memory\)"),
    ],
)
def test_no_room(error: Exception, told: str) -> None:
    with pytest.raises(OutOfMemory, match=told) as caught, device_errors():
        raise error
    assert caught.value.code == "RESOURCE_EXHAUSTED" and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        accelerator("an illegal memory access was encountered"),
        accelerator("device-side assert triggered"),
        accelerator("unspecified launch failure"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle, opa, opb)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
    ids=str,
)
def test_a_poisoned_context_is_the_device_s(error: Exception) -> None:
    wanted = "^cuda failed: .*; `dmesg .* CUDA_LAUNCH_BLOCKING=1 names the call$"
    with pytest.raises(DeviceError, match=wanted) as caught, device_errors():
        raise error
    told = str(caught.value)
    assert "Search for" not in told and "\\n" not in told and "CUDA error" not in told, "its first line, no more"


def test_a_capture_that_memory_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.9 tells nothing of memory then: pytorch/pytorch#187795. So the free memory is told."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 << 28, 24 << 30))
    told = translated(accelerator("operation failed due to a previous error during capture"))
    assert isinstance(told, DeviceError)
    assert "0.75 GiB of 24.00 GiB is free; if that is little, lower --seats" in str(told)


@pytest.mark.parametrize(
    ("behind", "told"),
    [
        (torch.OutOfMemoryError(FULL), "cuda failed in a capture: the GPU's memory is full: 22.78 GiB more was asked"),
        (accelerator("operation not permitted when stream is capturing"), "capture: operation not permitted when stre"),
        (ValueError("x has shape (1, 2)\nand more"), r"capture: x has shape \(1, 2\); if that is little"),
    ],
    ids=["memory", "cuda", "ours"],
)
def test_what_ended_a_capture_is_told_and_not_its_clean_up(behind: Exception, told: str) -> None:
    """torch.cuda.graph ends the capture on its way out, which raises over the exception that was on its way."""
    with pytest.raises(DeviceError, match=told), device_errors():
        try:
            raise behind
        finally:
            raise accelerator("operation failed due to a previous error during capture")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (accelerator("no kernel image is available for execution on the device"), "has no code for this GPU"),
        (RuntimeError("Triton Error [CUDA]: device kernel image is invalid"), "has no code for this GPU"),
        (
            RuntimeError(
                "Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl."
            ),
            "apt-get install gcc, or set CC",
        ),
        (
            subprocess.CalledProcessError(1, ["/usr/bin/gcc", "main.c"]),
            "/usr/bin/gcc ended with status 1 .*python3-dev",
        ),
        (AssertionError("libcuda.so cannot found!\nPossible files"), "ldconfig, or set TRITON_LIBCUDA_PATH"),
        (RuntimeError("Could not create or locate cache dir"), "set TRITON_CACHE_DIR"),
        (
            OSError(errno.EROFS, "Read-only file system", "/x/y"),
            "cannot write /x/y: Read-only file system; set TRITON_C",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; set TRITON_CACHE_DIR"),
        (PTXASError("ptxas fatal: Value 'sm_130' is not defined"), "cannot compile a kernel .*sm_130.*pip install"),
        (OutOfResources(131072, 65536, "shared memory"), "Required: 131072, Hardware limit: 65536"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "the machine's own memory is full"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_machine_that_cannot_run_it(error: Exception, told: str) -> None:
    with pytest.raises(BackendError, match=told) as caught, device_errors():
        raise error
    assert not isinstance(caught.value, OutOfMemory) and "\\n" not in str(caught.value)


def test_what_is_nobody_s_goes_through() -> None:
    for error in (
        ValueError("ours"),
        RuntimeError("shape '[2]' is invalid"),
        OSError(errno.ENOENT, "no"),
        NoEngine("x"),
    ):
        with pytest.raises(type(error)) as caught, device_errors():
            raise error
        assert caught.value is error


def test_what_was_half_made_is_given_back() -> None:
    """Before the caller hears of it: else the memory would stay taken for as long as somebody holds the error."""

    class Half:
        pass

    held: list[weakref.ref[Half]] = []
    kept = {"lane": 1}

    def make() -> None:
        half = Half()
        held.append(weakref.ref(half))
        raise torch.OutOfMemoryError(FULL)

    with pytest.raises(OutOfMemory, match="^8 seats: the GPU's memory is full: 22.78 .*; lower --seats$") as caught:
        with_memory(make, "8 seats", "lower --seats", kept.clear)
    assert held[0]() is None and not kept and caught.value.__context__ is None
    assert with_memory(lambda: 7, "", "") == 7


def test_kernels_that_triton_refuses_are_named() -> None:
    told = translated(CompilationError(None, None, "unsupported"))
    assert isinstance(told, BackendError) and "CompilationError" in str(told)


def build(name: str) -> None:
    """Triton's own compilation of a launcher."""
    compile_module_from_src("#include <Python.h>", name)


def test_triton_s_own_words_are_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "false")  # as a compiler that does not find Python.h
    with (
        pytest.raises(BackendError, match="^false ended with status 1 on Triton's launcher: .*python3-dev"),
        device_errors(),
    ):
        build("launcher")
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="there is none: apt-get install gcc, or set CC to one"), device_errors():
        build("launcher")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file/cache"))
    with pytest.raises(BackendError, match="Triton cannot write .*file/cache.*set TRITON_CACHE_DIR"), device_errors():
        build("launcher")
