"""The cache folder, and how an entry comes into it: made in a folder of its own, renamed whole.

    engines/<key>/    one compiled engine and its manifest (engines/cache/store.py)
    artifacts/<key>/  one exported checkpoint, for plans (engines/artifact/first_use.py)
    graphs/<network>-<key>-<tracer>.onnx  one network of an architecture that ships without a graph (engines/graphs.py)
    devices/<key>.json  what was measured on one device (engines/cache/devices.py)

Beside them lie, while somebody works, .new-* (being made), .old-* (being removed) and .lock-* (who makes what). Those
of dead processes are swept away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pwd
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.cache import disk, lock

KINDS = ("engines", "artifacts", "graphs", "devices")
_NOWHERE = Path(os.devnull)  # a file, so that nothing can be made in it
_STALE = 3600.0  # seconds; a file beside its place is written in far less


def cache_folder() -> Path:
    """Return the cache's absolute path: $LATENTD_CACHE, else $XDG_CACHE_HOME/latentd if that is absolute (its
    specification wants that), else ~/.cache/latentd.

    Where there is no such place it returns a path at which nothing can be made, not even by root: what need not be
    kept is not kept, and what must be kept fails in a sentence that has this path in it.
    """
    if chosen := os.environ.get("LATENTD_CACHE"):
        try:
            return Path(chosen).expanduser().absolute()
        except RuntimeError:  # ~somebody, who is not known here
            return _NOWHERE / f"(LATENTD_CACHE is {chosen.replace('/', '|')}, whose home folder is not known)"
    above = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if above.is_absolute():
        return above / "latentd"
    home = _home()
    return home / ".cache" / "latentd" if home else _NOWHERE / "(no home folder is known: set LATENTD_CACHE)"


def _home() -> Path | None:
    """Return $HOME, else the home that passwd has; None for a user id without an entry, as in containers."""
    if home := os.environ.get("HOME"):
        return Path(home).absolute()
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def key(**parts: Any) -> str:
    """Return a name for what `parts` (JSON values) determine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Fresh:
    """A folder that is being filled, locked by this process (and by children that are given `number`)."""

    folder: Path
    place: Path
    number: int

    def keep(self) -> None:
        """Make the folder the entry; what was in its place goes. This process uses it now. Errors: DiskError."""
        disk.sync(self.folder)
        disk.remove(self.place)
        disk.replace(self.folder, self.place)
        lock.share(self.place, os.dup(self.number))


@contextlib.contextmanager
def fresh(place: Path) -> Iterator[Fresh]:
    """Yield an empty folder beside `place`; it is removed at the end unless it was kept. Errors: DiskError."""
    disk.make(place.parent)
    sweep(place.parent)
    folder = place.with_name(f".new-{place.name}-{secrets.token_hex(4)}")
    disk.make(folder)
    number = lock.take(folder, fcntl.LOCK_EX)
    if number is None:  # another process swept it away, between the two calls
        raise disk.DiskError("lock", folder, OSError(errno.EAGAIN, "another process has it; try again"))
    try:
        yield Fresh(folder, place, number)
    finally:
        try:
            with contextlib.suppress(disk.DiskError):
                disk.remove(folder)
        finally:
            os.close(number)


def sweep(folder: Path) -> None:
    """Remove what dead processes left in a folder of the cache. What cannot be removed stays."""
    for path in _paths(folder):
        if path.name.startswith(".old-"):
            _remove(path)
        elif path.name.startswith(".new-") and not path.is_dir():
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()
        elif path.name.startswith((".new-", ".lock-")) and (number := lock.take(path, fcntl.LOCK_EX)) is not None:
            _remove(path)
            os.close(number)


def entries(folder: Path) -> list[Path]:
    """Return what is kept in a folder of the cache, without what is being made or removed."""
    return [path for path in _paths(folder) if not path.name.startswith(".")]


def _paths(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
