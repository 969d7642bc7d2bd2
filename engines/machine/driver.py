"""Reads about the NVIDIA driver of this machine in the files that it shows: no library is loaded."""

from __future__ import annotations

import re
from pathlib import Path

# Any of these files shows a driver: of a kernel module, in a container that got only its devices, in Windows' Linux.
_DRIVER = tuple(Path(p) for p in ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))


def driver_here() -> bool:
    return any(path.exists() for path in _DRIVER)


def driver_version() -> str:
    """Return the version of the kernel's driver, "580.95.05", or "unknown"."""
    try:
        match = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", _DRIVER[0].read_text())
    except OSError:
        match = None
    return match[0] if match else "unknown"
