"""The memory that this process has and may have: the machine's, cut by the limits of its cgroups."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from collections.abc import Iterator
from pathlib import Path

from engines.machine.cores import cgroup_folders

_CGROUP, _PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self")
# A cgroup's limit and use, and of that what the kernel takes back when it needs it: by v2's names, and by v1's.
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_memory(cgroup: Path = _CGROUP, process: Path = _PROCESS) -> int | None:
    """Return the bytes that this process may have resident; None where nothing says so.

    `cgroup` and `process` are as for `available_cores`. Beyond a cgroup's limit the kernel ends the process.
    """
    limits = [_number(folder / limit) for folder, (limit, _, _) in _groups(cgroup, process)]
    limits.append(_kilobytes(process.parent / "meminfo", "MemTotal"))
    return min((limit for limit in limits if limit is not None), default=None)


def free_memory(cgroup: Path = _CGROUP, process: Path = _PROCESS) -> int | None:
    """Return the bytes that may still be taken without swapping; None where the system does not tell."""
    rests = [_kilobytes(process.parent / "meminfo", "MemAvailable")]
    for folder, (limit, used, spare) in _groups(cgroup, process):
        if (most := _number(folder / limit)) is not None and (now := _number(folder / used)) is not None:
            cached = re.search(rf"^{spare} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
            rests.append(most - now + (int(cached[1]) if cached else 0))
    left = [rest for rest in rests if rest is not None]
    return max(0, min(left)) if left else None


def held_memory(process: Path = _PROCESS) -> int | None:
    """Return the bytes that this process holds beside mapped files; None where the system does not tell."""
    return _kilobytes(process / "status", "RssAnon")


def give_back() -> None:
    """Give freed memory back to the system: glibc keeps what lies between pieces that are in use."""
    gc.collect()  # an engine and what uses it may hold each other
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _groups(cgroup: Path, process: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    for folder in cgroup_folders(cgroup, process, "memory"):
        yield folder, _V2  # of each one of these two is there
        yield folder, _V1


def _kilobytes(path: Path, name: str) -> int | None:
    match = re.search(rf"^{name}:\s+(\d+) kB$", _text(path), re.MULTILINE)
    return int(match[1]) << 10 if match else None


def _number(path: Path) -> int | None:
    text = _text(path).strip()  # "max" where there is no limit
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


__all__ = ["available_memory", "free_memory", "give_back", "held_memory"]
