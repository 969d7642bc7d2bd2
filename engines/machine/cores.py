"""The cores that this process may use: its affinity mask, cut by the CPU quotas of its cgroup and of those above it.

A quota stands where it was given: a container's --cpus at the top of what the container sees, a systemd service's
CPUQuota in the service's own folder, a slice's in a folder between. All of them hold, so the smallest counts.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_cores(cgroup: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self")) -> int:
    """Return how many cores this process may use, at least 1.

    A machine's core count is not what a container may use, and extra threads only take turns. `cgroup` is where the
    hierarchies are looked for beside the places that `process` (a folder of /proc) says.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in cgroup_folders(cgroup, process, "cpu") if (quota := _quota(folder)) is not None]
    return max(1, min([affinity, *quotas]))


def cgroup_folders(cgroup: Path, process: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroups, its own first, up to each hierarchy's mount; some may not exist.

    Those of cgroup v2, and those of v1's hierarchy of a `controller`, each where it is mounted.
    """
    unified, own = _places(process, controller)
    mounts = [(cgroup, "/", unified), (cgroup / controller, "/", own)]
    for mount, root, version in _mounts(process, controller):
        mounts.append((mount, root, unified if version == 2 else own))
    for mount, root, place in mounts:
        # A container may have a part of the hierarchy mounted, and be told of its place in the whole of it.
        inner, top = PurePosixPath(place), PurePosixPath(root)
        within = inner.relative_to(top) if inner.is_relative_to(top) else inner.relative_to("/")
        if ".." not in within.parts:  # outside of what the cgroup namespace shows
            yield from (mount / part for part in (within, *within.parents))
        yield mount


def _places(process: Path, controller: str) -> tuple[str, str]:
    """Return the process's place in cgroup v2 and in v1's hierarchy of a controller; "/" where it is in none.

    Lines of /proc/PID/cgroup are number:controllers:place; v2's has no controllers (cgroups(7)).
    """
    unified = own = "/"
    for line in _lines(process / "cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if place.startswith("/"):
            unified = place if (number, controllers) == ("0", "") else unified
            own = place if controller in controllers.split(",") else own
    return unified, own


def _mounts(process: Path, controller: str) -> Iterator[tuple[Path, str, int]]:
    """Yield where each hierarchy of a controller is mounted, which part of it, and its version.

    Lines of /proc/PID/mountinfo: .. .. .. root mount-point options [optional ..] - type source options (proc(5)).
    """
    for line in _lines(process / "mountinfo"):
        left, _, right = line.partition(" - ")
        first, last = left.split(), right.split()
        if len(first) < 5 or len(last) < 3:
            continue
        root, mount = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text) for text in first[3:5])
        if last[0] == "cgroup2":
            yield Path(mount), root, 2
        elif last[0] == "cgroup" and controller in last[2].split(","):
            yield Path(mount), root, 1


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _quota(folder: Path) -> int | None:
    """Read a CPU quota in cores, rounded up: cgroup v2's cpu.max, else v1's cfs files; None without a limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except (OSError, ValueError):
            return None
    if quota in ("max", "-1") or not (quota.isdigit() and period.isdigit() and int(period)):
        return None
    return math.ceil(int(quota) / int(period))
