"""Is there an NVIDIA GPU that torch can use? Asked without loading torch where there is no driver."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

# Any of these is a driver: of a module, of a container that got its device nodes only, of Windows' Linux.
_DRIVER = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))


def cuda_here() -> bool:
    """A driver, an installed torch, and a GPU that this torch can use."""
    if not any(path.exists() for path in _DRIVER) or importlib.util.find_spec("torch") is None:
        return False
    return bool(importlib.import_module("engines.cuda").available())


def driver() -> str:
    """The version of the kernel's driver, "580.95.05", or "unknown"."""
    try:
        told = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", _DRIVER[0].read_text())
    except OSError:
        told = None
    return told[0] if told else "unknown"
