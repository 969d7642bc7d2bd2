"""The memory that this process may use: the machine's, cut by the limits of its cgroup and of those above it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from engines.machine.cores import cgroup_folders


def available_memory(cgroup: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")) -> int | None:
    """Return the bytes that this process may have resident; None where nothing says so.

    `cgroup` and `process` are as for `available_cores`. Beyond a cgroup's limit the kernel ends the process.
    """
    files = [folder / "memory.max" for folder in cgroup_folders(cgroup, process)]  # v2; "max" is none
    files.append(cgroup / "memory" / "memory.limit_in_bytes")  # v1, as a container sees its own
    limits = []
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(file.read_text()))
    with contextlib.suppress(OSError, ValueError, IndexError):  # its first line is MemTotal, in KiB (proc(5))
        limits.append(1024 * int((process.parent / "meminfo").read_text().split()[1]))
    return min(limits, default=None)


__all__ = ["available_memory"]
