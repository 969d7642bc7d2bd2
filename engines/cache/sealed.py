"""JSON that vouches for itself: one way to write it, and the SHA-256 of all else as its `seal`.

A flipped byte anywhere in such a file, also in a space, is found when it is read. The seal is against damage and
mistakes; it keeps out nobody who may write to the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError, LatentdError
from pipeline.files import read_file

_MOST = 1 << 22  # bytes: a manifest of a hundred shards has 30 kB


class Damaged(LatentdError):  # noqa: N818 (it names the state of a file, which is then built again)
    """A file that is not what was written: the message names it and says why, in one sentence without a period."""

    code = "FAILED_PRECONDITION"


def sealed(values: dict[str, Any]) -> bytes:
    """Return the file's bytes for `values` (JSON values, no "seal")."""
    return _text({**values, "seal": hashlib.sha256(_text(values)).hexdigest()})


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the values of a sealed file. Errors: Damaged; FileNotFoundError where there is none."""
    try:
        text = read_file(path, _MOST)
    except FileNotFoundError:
        raise FileNotFoundError(path) from None
    except CheckpointError as error:  # no regular file, too large, unreadable: its sentence names the path
        if os.path.isfile(path.parent) or not os.path.exists(path.parent):  # a file where a folder should be
            raise FileNotFoundError(path) from None
        raise Damaged(str(error)) from None
    return unsealed(text, path)


def unsealed(text: bytes, path: Path) -> dict[str, Any]:
    """Return the values of a sealed file's bytes. Errors: Damaged, naming `path`."""
    try:
        values = json.loads(text)
        seal = values.pop("seal")
        whole = text == sealed(values) and seal == hashlib.sha256(_text(values)).hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path} is damaged ({type(error).__name__}: it is not a sealed JSON object)") from None
    if not whole:
        raise Damaged(f"{path} is damaged (its seal is not that of its contents)")
    return values


def _text(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()
