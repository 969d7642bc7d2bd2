"""Keeps what TensorRT for RTX compiled of a plan on a device, for the next start: devices/<key>.compiled in the cache.

It is machine code: its SHA-256 stands before it and is compared whenever it is read. What is lost or damaged is
compiled again.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from engines.cache import devices, disk, entries
from pipeline.errors import CheckpointError
from pipeline.files import read_file

_MOST = 1 << 28  # bytes
_DIGEST = hashlib.sha256().digest_size

log = logging.getLogger("latentd.devices")


def recall(device: str, plan: str) -> bytes:
    """Return what is kept of the plan with this SHA-256 on this device (engines/cache/devices.py); b"" for nothing."""
    path = _path(device, plan)
    try:
        data = read_file(path, _MOST)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except CheckpointError as error:
        log.warning("%s; compiling again", error)
        return b""
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        log.warning("%s is damaged (its SHA-256 is another); compiling again", path)
        return b""
    return data[_DIGEST:]


def remember(device: str, plan: str, data: bytes) -> None:
    """Keep what was compiled of a plan on a device. Where it cannot be kept it is compiled again next time."""
    path = _path(device, plan)
    try:
        disk.make(path.parent)
        disk.write_whole(path, hashlib.sha256(data).digest() + data)
    except disk.DiskError as error:
        log.warning("not kept, the next start compiles again: %s", error)


def _path(device: str, plan: str) -> Path:
    return devices.folder() / f"{entries.key(device=device, plan=plan)}.compiled"
