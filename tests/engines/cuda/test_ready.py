"""A GPU that cannot be used: torch's own exceptions, and the sentence with which a server does not start."""

from __future__ import annotations

import importlib
import logging
import warnings
from pathlib import Path

import pytest
import torch

from engines import choice as choosing
from engines.choice import Choice
from engines.cuda import gpu, ready
from engines.errors import BackendError
from engines.machine import driver, toolchain
from engines.model import load, on_gpu
from pipeline.checkpoint.opened import Checkpoint

# c10/cuda/CUDAFunctions.cpp
OLD = (
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: "
    "https://pytorch.org to install a PyTorch version that has been compiled with your version of the CUDA driver."
)
NONE = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
    "http://www.nvidia.com/Download/index.aspx"
)
UNEXPECTED = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that "
    "might have already set an error? Error "
)


@pytest.fixture(autouse=True)
def driver_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A driver of 550.54, which torch is asked about."""
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024")
    monkeypatch.setattr(driver, "_DRIVER", (file,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A torch for CUDA 13.0, and an A100 that computes."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90a", "sm_120", "compute_120"])
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, device="cpu", **k: zeros(*a, **k))
    monkeypatch.setattr(toolchain, "check_toolchain", lambda: None)
    return monkeypatch


def refused(told: str) -> None:
    """By a server that is told `--device cuda`, before it exports or loads anything."""
    with pytest.raises(BackendError, match=f"^device cuda: .*{told}") as caught:
        on_gpu(Choice("auto", device="cuda"))
    assert "\\n" not in str(caught.value)


class Nothing:
    """A backend of the CPU's."""

    name = "openvino"

    def __init__(self, *_: object) -> None:
        pass


def raising(error: Exception) -> object:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_gpu_that_can_be_used(cuda: pytest.MonkeyPatch) -> None:
    assert gpu.why_not() == "" and on_gpu(Choice("auto", device="auto")) and on_gpu(Choice("torch", device="cuda"))
    assert not on_gpu(Choice("auto", device="cpu")) and not on_gpu(Choice("openvino", device="auto"))


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_a_torch_without_cuda() -> None:
    refused(r"torch \S+ is built without CUDA; install the build for CUDA in its place")


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_DRIVER", ())
    refused("there is no NVIDIA driver here: install it, or start the container with --gpus all")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError(OLD),
            r"driver 550.54.15 is too old: it has CUDA 12.4, torch \S+ needs 13.0; update the driver, or install a "
            "torch that was built for CUDA 12.4 or older$",
        ),
        (RuntimeError(NONE), r"libraries are not to be found \(libcuda.so.1\).*--gpus all"),
        (RuntimeError("No CUDA GPUs are available"), "shows this process no GPU: nvidia-smi -L"),
        (RuntimeError(UNEXPECTED + "802: system not yet initialized"), "systemctl start nvidia-fabricmanager"),
        (RuntimeError(UNEXPECTED + "803: system has unsupported display driver / cuda driver combination"), "reboot"),
        (RuntimeError(UNEXPECTED + "804: forward compatibility was attempted on non supported HW"), "cuda-compat"),
        (
            RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu.\nmore"),
            "CUDA does not start: CUDA driver initialization failed, you might not have a CUDA gpu.; see",
        ),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled; see whether"),
        (torch.cuda.DeferredCudaCallError("CUDA call failed lazily\n\nat"), "CUDA call failed lazily; see"),
    ],
    ids=range(9),
)
def test_cuda_that_does_not_start(cuda: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    cuda.setattr(torch.cuda, "init", raising(error))
    refused(told)


@pytest.mark.parametrize("value", ["", "-1", "7"])
def test_a_variable_that_hides_every_gpu(cuda: pytest.MonkeyPatch, value: str) -> None:
    cuda.setenv("CUDA_VISIBLE_DEVICES", value)
    cuda.setattr(torch.cuda, "init", raising(RuntimeError("No CUDA GPUs are available")))
    refused(f"CUDA_VISIBLE_DEVICES is '{value}', which hides every GPU: unset it, or set it to one, such as 0$")


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        *(((7, 5), True), ((8, 6), True), ((8, 9), True), ((9, 0), True), ((12, 1), True), ((13, 0), True)),
        *(((7, 0), False), ((10, 0), False), ((11, 0), False)),
    ],
)
def test_cards_that_this_torch_has_code_for(cuda: pytest.MonkeyPatch, capability: tuple[int, int], runs: bool) -> None:
    """sm_XY runs on X.Y and on later minors of X, compute_XY on all that is later, sm_90a on 9.0 alone."""
    cuda.setattr(torch.cuda, "get_device_capability", lambda: capability)
    told = "" if runs else "NVIDIA A100 is sm_{}{}, and torch".format(*capability)
    assert gpu.why_not().startswith(told) and bool(gpu.why_not()) is not runs


def test_torch_s_own_warning_of_a_card_is_not_said_twice(cuda: pytest.MonkeyPatch) -> None:
    cuda.setattr(torch.cuda, "init", lambda: warnings.warn("NVIDIA A100 with CUDA capability", stacklevel=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gpu.why_not() == ""


def test_a_card_that_computes_nothing(cuda: pytest.MonkeyPatch) -> None:
    for words, told in (
        ("CUDA-capable device(s) is/are busy or unavailable", "cuda failed: CUDA-capable device.* busy"),
        ("no kernel image is available for execution on the device", "has no code for this GPU"),
    ):
        cuda.setattr(torch, "zeros", raising(torch.AcceleratorError(f"CUDA error: {words}\nSearch for `x' in")))
        refused(told)
    cuda.setattr(torch, "zeros", raising(RuntimeError("something else\nin lines")))
    refused("NVIDIA A100 computes nothing: something else$")


def test_a_card_older_than_the_kernels(cuda: pytest.MonkeyPatch) -> None:
    cuda.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    cuda.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    refused("Tesla T4 is sm_75, and the kernels are for sm_80 and later .*; --device cpu serves on the CPU$")


def test_plans_run_on_a_card_older_than_the_kernels(cuda: pytest.MonkeyPatch) -> None:
    cuda.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert on_gpu(Choice("tensorrt_rtx", device="auto"))


def test_a_compiler_is_missed_before_the_model_is_loaded(cuda: pytest.MonkeyPatch) -> None:
    cuda.setattr(toolchain, "check_toolchain", raising(BackendError("no compiler")))
    for backend in ("torch", "tensorrt_rtx"):
        with pytest.raises(BackendError, match="no compiler"):
            on_gpu(Choice(backend, device="cuda"))
    assert not on_gpu(Choice("openvino", device="auto"))


@pytest.mark.parametrize("error", [ImportError("libcublas.so.13: cannot open shared object file"), OSError("libcu\nx")])
def test_a_torch_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(importlib, "import_module", raising(error))
    refused(r"torch cannot be loaded \(libcu.*\): install it again$")


def test_auto_says_why_it_takes_the_cpu(
    bare: Checkpoint, cuda: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a machine with a driver: nobody should find out from the seconds a picture takes."""
    cuda.setitem(choosing.BACKENDS, "openvino", (__name__, Nothing.__name__, "cpu"))
    cuda.setattr(torch.cuda, "init", raising(RuntimeError(OLD)))
    with caplog.at_level(logging.WARNING):
        assert load(bare).backend.name == "openvino"
        load(bare, Choice(device="cpu"))
        cuda.setattr(driver, "_DRIVER", ())
        load(bare)
    (told,) = caplog.messages
    assert told.startswith(
        "serving on the CPU, though there is an NVIDIA driver: the NVIDIA driver 550.54.15 is too old"
    )


def test_words_that_we_do_not_know() -> None:
    assert ready._runs("gfx90a", 9, 0), "torch's own list is no reason to refuse"
