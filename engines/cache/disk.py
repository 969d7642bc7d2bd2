"""Makes every change of caches, stores and exports on a disk, so that a test can end or fail each of them in turn.

What is written whole is written beside its place, synced, renamed over it, and its folder synced: whoever looks
finds the old, the new or nothing, at any moment, also after the power went.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import LatentdError

_PIECE = 1 << 22  # bytes written at once, 4 MiB
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD of fcntl.h, RENAME_EXCHANGE of linux/fs.h


class DiskError(LatentdError):
    """The disk did not do what it should: one sentence with the path, the bytes wanted and the reason."""

    code = "FAILED_PRECONDITION"

    def __init__(self, doing: str, path: Path, error: OSError, wanted: int | None = None) -> None:
        self.errno = error.errno
        needed = ""
        if wanted is not None:
            needed = f" ({wanted:,} bytes{_free(path) if error.errno == errno.ENOSPC else ''})"
        super().__init__(f"cannot {doing} {path}{needed}: {error.strerror or error}")


def _free(path: Path) -> str:
    try:
        return f", of which {shutil.disk_usage(path.parent).free:,} are free"
    except OSError:
        return ""


def _nothing(doing: str, path: Path) -> None:
    pass


# The seam of the tests: called before each operation with its name ("make", "write", "half", "sync", "replace",
# "remove") and its path; it may end the process or raise OSError. "half": part of a file's bytes are written.
before: Callable[[str, Path], None] = _nothing


def make(folder: Path) -> None:
    """Make the folder, and those above it, where they are missing. Errors: DiskError."""
    if os.path.isdir(folder):  # False where somebody may not look, of which mkdir has the reason
        return
    try:
        before("make", folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError("make", folder, error) from None


def write(path: Path, data: bytes | memoryview) -> None:
    """Write a file and sync it. A failure may leave a part: it is for folders that are renamed when all is there."""
    view = memoryview(data).cast("B")
    half = len(view) // 2
    try:
        before("write", path)
        with path.open("wb") as file:
            _pour(file.fileno(), view[:half])
            before("half", path)
            _pour(file.fileno(), view[half:])
            before("sync", path)
            os.fsync(file.fileno())
    except OSError as error:
        raise DiskError("write", path, error, len(view)) from None


@contextlib.contextmanager
def written(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Write a file piece by piece, with the function that this yields; it is synced at the end, as by `write`.

    Errors: DiskError, of each piece too.
    """
    done = 0

    def more(data: bytes) -> None:
        nonlocal done
        try:
            before("half" if done else "write", path)
            _pour(file.fileno(), memoryview(data))
        except OSError as error:
            raise DiskError("write", path, error, done + len(data)) from None
        done += len(data)

    try:
        with path.open("wb") as file:
            yield more
            before("sync", path)
            os.fsync(file.fileno())
    except OSError as error:
        raise DiskError("write", path, error, done) from None


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Give a file these bytes, or leave it as it was. Errors: DiskError."""
    temporary = path.with_name(f".new-{path.name}-{os.getpid()}")
    try:
        write(temporary, data)
        replace(temporary, path)
    except DiskError as error:
        raise DiskError("write", path, OSError(error.errno, os.strerror(error.errno or 0)), len(data)) from None
    finally:  # renamed away, unless something failed or interrupted
        with contextlib.suppress(DiskError):
            remove(temporary)


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk. Errors: DiskError."""
    try:
        before("sync", path)
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        raise DiskError("sync", path, error) from None


def replace(source: Path, target: Path) -> None:
    """Rename, and sync the folder that holds the names. A folder replaces nothing but an empty one."""
    try:
        before("replace", target)
        source.replace(target)
    except OSError as error:
        raise DiskError("rename to", target, error) from None
    sync(target.parent)


def exchange(folder: Path, other: Path) -> None:
    """Swap the names of two folders, at once where the file system can do that (NFS cannot).

    Errors: DiskError, and before the names are synced both have their own again.
    """
    try:
        before("replace", other)
        if not _swapped(folder, other):
            aside = other.rename(folder.with_name(f"{folder.name}-aside"))
            try:
                folder.rename(other)
            except OSError:
                aside.rename(other)
                raise
            aside.rename(folder)
    except OSError as error:
        raise DiskError("rename to", other, error) from None
    sync(other.parent)


def _swapped(one: Path, other: Path) -> bool:
    """Swap the names; return False where the system cannot. Errors: OSError."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or rename(_HERE, bytes(one), _HERE, bytes(other), _EXCHANGE) == 0:
        return rename is not None
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number))


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there. Errors: DiskError.

    A folder is renamed first, so that nobody takes what is left of it for whole.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            before("remove", path)
            if not path.name.startswith("."):
                path = path.replace(path.with_name(f".old-{path.name}-{secrets.token_hex(4)}"))
            shutil.rmtree(path)
        elif path.is_symlink() or path.exists():
            before("remove", path)
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError("remove", path, error) from None


def _pour(number: int, data: memoryview) -> None:
    while data:
        data = data[os.write(number, data[:_PIECE]) :]
