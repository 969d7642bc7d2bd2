"""The NVIDIA driver of this machine, asked of the files that it shows: no library is loaded."""

from __future__ import annotations

import re
from pathlib import Path

# Any of these is a driver: of a module, of a container that got its device nodes only, of Windows' Linux.
_DRIVER = tuple(Path(p) for p in ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))


def driver_here() -> bool:
    return any(path.exists() for path in _DRIVER)


def driver_version() -> str:
    """The version of the kernel's driver, "580.95.05", or "unknown"."""
    try:
        told = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", _DRIVER[0].read_text())
    except OSError:
        told = None
    return told[0] if told else "unknown"
