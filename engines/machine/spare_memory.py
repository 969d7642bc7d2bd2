"""The memory that a process has, and that is left for it: the machine's, cut by the limits of its cgroups."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from pathlib import Path, PurePosixPath

_CGROUP = Path("/sys/fs/cgroup")
# Of cgroup v2, and of v1, whose hierarchy of memory has a folder: limit, use, and the pages that the kernel takes back.
_KINDS = (
    ("", ("memory.max", "memory.current", "inactive_file")),
    ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
)


def anonymous(process: Path = Path("/proc/self")) -> int | None:
    """Return the bytes that this process holds beside mapped files; None where the system does not tell."""
    return _kilobytes(process / "status", "RssAnon")


def available(process: Path = Path("/proc/self"), machine: Path = Path("/proc/meminfo")) -> int | None:
    """Return the bytes that may still be taken without swapping; None where the system does not tell."""
    left = [rest for rest in (_kilobytes(machine, "MemAvailable"), *_rests(process)) if rest is not None]
    return max(0, min(left)) if left else None


def give_back() -> None:
    """Give freed memory back to the system: glibc keeps what lies between pieces that are in use."""
    gc.collect()  # an engine and what uses it may hold each other
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _rests(process: Path) -> list[int]:
    """Return what is left within the limit of each of the process's cgroups, up to the hierarchy's mount."""
    rests = []
    for folder, names in _KINDS:
        place = PurePosixPath(_place(process, folder)).relative_to("/")
        for part in (place, *place.parents):
            limit, used, spare = (_CGROUP / folder / part / name for name in (*names[:2], "memory.stat"))
            if (most := _number(limit)) is not None and (now := _number(used)) is not None:
                cached = re.search(rf"^{names[2]} (\d+)$", _text(spare), re.MULTILINE)
                rests.append(most - now + (int(cached[1]) if cached else 0))
    return rests


def _place(process: Path, controller: str) -> str:
    """Return the process's place in cgroup v2, or in v1's hierarchy of a controller; "/" where it is in none."""
    for line in _text(process / "cgroup").splitlines():
        _, controllers, place = (*line.split(":", 2), "", "")[:3]
        if place.startswith("/") and ".." not in place and controller in controllers.split(","):
            return place
    return "/"


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
