"""Reading files that somebody else made: only regular ones, and only so many bytes.

Opening a pipe waits for ever, and a device may never end; so whatever reads a checkpoint or an artifact asks here.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def regular_size(path: Path) -> int:
    """Count a regular file's bytes. Errors: FileNotFoundError; CheckpointError for all else that cannot be read."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in a name
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} cannot be read: it is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}")
    return status.st_size


def read_file(path: Path, largest: int) -> bytes:
    """Read the bytes of a regular file of at most `largest` bytes. Errors: FileNotFoundError; CheckpointError."""
    size = regular_size(path)
    try:
        if size <= largest:
            with path.open("rb") as file:
                data = file.read(largest + 1)  # the size of a file in /proc is 0, whatever it holds
                size = len(data)
                if size <= largest:
                    return data
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    raise CheckpointError(f"{path} has {size} bytes; latentd reads at most {largest}")


def parse_json(data: bytes) -> Any:
    """Read a JSON value in UTF-8. Errors: ValueError, also for a key that stands twice in an object; RecursionError."""
    return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):  # readers differ in which one they take
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {double[:64]!r} stands twice")
    return values
