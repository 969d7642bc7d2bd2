"""How much the cache may hold: the entry that nobody used for longest goes first, what a live process uses never.

$LATENTD_CACHE_GB gigabytes, 20 where it is not set: the exported copy of one SD 1.5 checkpoint (4 GB in float32)
and its plans in half precision (1.7 GB a bucket) for four buckets of two sizes fit, and few laptops miss it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from engines.cache import disk, entries, lock
from pipeline.errors import LatentdError

DEFAULT_GB = 20.0

log = logging.getLogger("latentd.cache")


class LimitError(LatentdError):
    """LATENTD_CACHE_GB is not a number of gigabytes."""

    code = "INVALID_ARGUMENT"


@dataclass(frozen=True)
class Entry:
    path: Path
    bytes: int
    used: float  # seconds since the epoch


def limit() -> int:
    """Return how many bytes the cache may hold. Errors: LimitError."""
    words = os.environ.get("LATENTD_CACHE_GB") or DEFAULT_GB
    try:
        gigabytes = float(words)
        if not 0 <= gigabytes < 1e6:
            raise ValueError
    except ValueError:
        raise LimitError(f"LATENTD_CACHE_GB is {words!r}; it takes a number of gigabytes from 0 to 1e6") from None
    return int(gigabytes * 1e9)


def kept() -> list[Entry]:
    """Return the engines and artifacts, the one that was not used for longest first."""
    listed = []
    for kind in ("engines", "artifacts"):
        for path in entries.entries(entries.cache_folder() / kind):
            with contextlib.suppress(OSError):  # removed meanwhile
                listed.append(Entry(path, size(path), path.stat().st_mtime))
    return sorted(listed, key=lambda entry: entry.used)


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(
        os.stat(os.path.join(folder, name), follow_symlinks=False).st_size
        for folder, _, names in os.walk(path)
        for name in names
    )


def touch(folder: Path) -> None:
    """Write down that an entry was used now."""
    with contextlib.suppress(OSError):
        os.utime(folder)


def evict() -> list[Entry]:
    """Remove the entries that were not used for longest until the rest fits, and return them. Errors: LimitError."""
    most, removed = limit(), []
    listed = kept()
    total = sum(entry.bytes for entry in listed)
    for entry in listed:
        if total <= most:
            break
        if _remove(entry.path):
            log.info("%s removed: the cache holds at most %g GB", entry.path, most / 1e9)
            removed.append(entry)
            total -= entry.bytes
    if total > most:
        log.warning(
            "the cache holds %.1f GB that is in use, more than its limit of %g: raise LATENTD_CACHE_GB",
            total / 1e9,
            most / 1e9,
        )
    return removed


def clean() -> tuple[list[Entry], list[Entry]]:
    """Remove all that no live process uses, measurements too; return what was removed, and what stayed in use."""
    removed, stayed = [], []
    for kind in entries.KINDS:
        entries.sweep(entries.cache_folder() / kind)
    for entry in kept():
        (removed if _remove(entry.path) else stayed).append(entry)
    for path in (path for kind in ("graphs", "devices") for path in entries.entries(entries.cache_folder() / kind)):
        with contextlib.suppress(OSError, disk.DiskError):
            entry = Entry(path, size(path), path.stat().st_mtime)
            disk.remove(path)
            removed.append(entry)
    return removed, stayed


def _remove(path: Path) -> bool:
    """Remove an entry; return False where a live process uses it, or it cannot be removed."""
    number = lock.take(path, fcntl.LOCK_EX)
    if number is None:
        return False
    try:
        disk.remove(path)
    except disk.DiskError as error:
        log.warning("%s", error)
        return False
    finally:
        os.close(number)
    return True
