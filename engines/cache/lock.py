"""Who uses, writes or builds an entry of the cache: flock(2) on its folder, or on a file while there is none.

The kernel drops a dead process's locks at once, whatever killed it, and knows nothing of process numbers, which
containers that share a cache each count for themselves. Where a file system has no locks, work goes on without.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_BUSY = (errno.EAGAIN, errno.EACCES)
_held: dict[Path, int] = {}  # entries that this process uses: their open folders


def take(path: Path, how: int) -> int | None:
    """Lock what is at `path`, without waiting; return its descriptor, None where there is nothing or it is busy."""
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    if _lock(number, how | fcntl.LOCK_NB) and _same(number, path):
        return number
    os.close(number)
    return None


def use(folder: Path) -> bool:
    """Keep an entry from being evicted for as long as this process lives, or until `let_go`.

    False where there is no such entry, or it is being removed.
    """
    number = take(folder, fcntl.LOCK_SH)
    if number is None:
        return False
    let_go(folder)  # another entry may have been here before, and was replaced: this lock is of the new one
    _held[folder] = number
    return True


def share(folder: Path, number: int) -> None:
    """Turn this process's lock on a folder that it wrote into a shared one: the folder is an entry now, and in use."""
    _lock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    let_go(folder)
    _held[folder] = number


def let_go(folder: Path) -> None:
    with contextlib.suppress(KeyError, OSError):
        os.close(_held.pop(folder))


@contextlib.contextmanager
def alone(place: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """Let one process at a time make what belongs at `place`; `say` gets a line that names the process waited for.

    It yields whether it had to wait: if so, what it came to make may be there now.

    The lock is a file beside `place` that holds the number of the process; it goes with its holder. A cache that
    cannot be written has no locks: nobody can build into it either.
    """
    path = place.with_name(f".lock-{place.name}")
    number, waited = _open(path), False
    while number is not None:
        if not _lock(number, fcntl.LOCK_EX | fcntl.LOCK_NB):
            say(f"waiting for process {_holder(number)}, which makes {place}")
            waited = True
            _lock(number, fcntl.LOCK_EX)
        if _same(number, path):
            break
        os.close(number)  # its holder removed it
        number = _open(path)
    try:
        if number is not None:
            with contextlib.suppress(OSError):  # a full disk: the number is for people only
                os.truncate(number, 0)
                os.pwrite(number, str(os.getpid()).encode(), 0)
        yield waited
    finally:
        if number is not None:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            os.close(number)


def _open(path: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return None


def _lock(number: int, how: int) -> bool:
    """Take a lock; return False when somebody else has it. A file system without locks gives all to everybody."""
    try:
        fcntl.flock(number, how)
    except OSError as error:
        return error.errno not in _BUSY
    return True


def _same(number: int, path: Path) -> bool:
    """Return whether the open file is still the one of this name."""
    try:
        opened, named = os.fstat(number), os.stat(path)
    except OSError:
        return False
    return (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)


def _holder(number: int) -> str:
    with contextlib.suppress(OSError, ValueError):
        return str(int(os.pread(number, 20, 0)))
    return "(unknown)"
