"""Finds out whether there is an NVIDIA GPU that torch can use, without loading torch where there is no driver."""

from __future__ import annotations

import importlib
import importlib.util
import sys

from engines.machine.driver import driver_here
from pipeline.extras import install


def cuda_here() -> bool:
    """Return whether there are a driver, an installed torch, and a GPU that this torch can use."""
    return not why_not()


def why_not() -> str:
    """Say why no GPU can be used, and what mends that, as the rest of a sentence; "" where one can be used."""
    if not driver_here():
        return (
            "there is no NVIDIA driver here: install it, or start the container with --gpus all (nvidia-smi shows it)"
        )
    if importlib.util.find_spec("torch") is None:
        return f"torch is not installed: {install('export', 'kernels')}"
    try:
        return str(importlib.import_module("engines.cuda.ready").why_not())
    except (ImportError, OSError) as error:  # a library of CUDA's that its wheel brings, missing or of another version
        return f"torch cannot be loaded ({(str(error).splitlines() or ['?'])[0]}): install it again"


def held_memory() -> int:
    """Return the bytes of the GPU that tensors of this process take: none, before torch is loaded for one."""
    torch = sys.modules.get("torch")
    return torch.cuda.memory_allocated() if torch is not None and torch.cuda.is_initialized() else 0


def free_memory() -> int | None:
    """Return the bytes of the GPU that are free, or that torch has kept of what was freed."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def give_back() -> None:
    """Give what torch has kept of freed memory back to the GPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with importlib.import_module("engines.cuda.stream").ALONE:
            torch.cuda.empty_cache()


def check_kernels() -> None:
    """Check that our kernels will run on the GPU that is here. Errors: BackendError."""
    importlib.import_module("engines.cuda.ready").check_kernels()
