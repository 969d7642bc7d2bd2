"""Finds out in seconds, before the minutes of a load, whether torch and our kernels can use the GPU that is here."""

from __future__ import annotations

import os
import re
import warnings

import torch

from engines.cuda.errors import translated
from engines.errors import BackendError
from engines.machine import toolchain
from engines.machine.driver import driver_version

LEAST = (8, 0)  # compute capability: the kernels' tiles and bfloat16 are for sm_80 and later

# What cudaGetDeviceCount may fail with beside the common ones (driver_types.h), and what has mended it.
_CODES = {
    "802": "the GPUs' switches are not up: start the fabric manager, systemctl start nvidia-fabricmanager",
    "803": "the driver's library and its kernel module are of different versions: reboot, or restart the container",
    "804": "this CUDA needs a newer driver than this card's kind may bridge: update it, or remove cuda-compat",
}


def why_not() -> str:
    """Say why torch cannot use a GPU here, and what mends that; "" where it can."""
    build = f"torch {torch.__version__}"
    if torch.version.cuda is None:
        return f"{build} is built without CUDA; install the build for CUDA in its place (pytorch.org names it)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of cards that it does not support: said below, for the one that is used
            torch.cuda.init()
            name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
            archs = torch.cuda.get_arch_list()
    except Exception as error:  # RuntimeError, AssertionError, torch's DeferredCudaCallError
        return _of_start(str(error), build)
    if archs and not any(_runs(arch, major, minor) for arch in archs):
        return (
            f"{name} is sm_{major}{minor}, and {build} has code for {', '.join(archs)} only; install a build for this "
            "card (pytorch.org names it)"
        )
    try:
        torch.zeros(1, device="cuda").item()  # a context, memory and a kernel: a busy or broken card says so here
    except Exception as error:
        ours = translated(error)
        return str(ours) if ours else f"{name} computes nothing: {str(error).strip().splitlines()[0]}"
    return ""


def check_kernels() -> None:
    """Check that our kernels are for this card, and that Triton can compile them. Errors: BackendError."""
    capability = torch.cuda.get_device_capability()
    if capability < LEAST:
        arch = "sm_{}{}".format(*capability)
        raise BackendError(
            f"device cuda: {torch.cuda.get_device_name()} is {arch}, and the kernels are for sm_80 and later (A100, "
            f"A10, L4, RTX 30 and newer); --device cpu serves on the CPU"
        )
    toolchain.check_toolchain()


def _runs(arch: str, major: int, minor: int) -> bool:
    """Return whether code for `arch` runs on compute capability `major`.`minor`.

    Machine code (sm_86, sm_90a) runs on its own generation from its minor on, PTX (compute_90) on all later ones.
    """
    if (match := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)) is None:
        return True  # a word that we do not know
    built_for = int(match[2]), int(match[3])
    if match[4] == "a":
        return built_for == (major, minor)
    return built_for <= (major, minor) and (match[1] == "compute" or built_for[0] == major)


def _of_start(words: str, build: str) -> str:
    """Say why CUDA did not start; `words` are torch's (c10/cuda/CUDAFunctions.cpp)."""
    first = (words.strip().splitlines() or ["it gives no reason"])[0]
    cuda = torch.version.cuda
    if match := re.search(r"driver on your system is too old \(found version (\d+)\)", words):
        has = f"{int(match[1]) // 1000}.{int(match[1]) % 1000 // 10}"
        return (
            f"the NVIDIA driver {driver_version()} is too old: it has CUDA {has}, {build} needs {cuda}; update the "
            f"driver, or install a torch that was built for CUDA {has} or older"
        )
    if "No CUDA GPUs are available" in words or "no CUDA-capable device" in words:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return "the NVIDIA driver shows this process no GPU: nvidia-smi -L lists them; a container needs --gpus all"
        return f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides every GPU: unset it, or set it to one, such as 0"
    if "Found no NVIDIA driver" in words:
        return (
            "the NVIDIA driver's libraries are not to be found (libcuda.so.1), though its kernel module is loaded: "
            "install them, or start the container with --gpus all"
        )
    if match := re.search(r"Error (80[234]): ([^\n(]+)", words):
        return f"CUDA does not start, error {match[1]} ({match[2].strip()}): {_CODES[match[1]]}"
    return f"CUDA does not start: {first}; see whether nvidia-smi works, and CUDA_VISIBLE_DEVICES"
