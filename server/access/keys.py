"""The keys of a YAML file, read anew when it changes, and the search for the one whose token a caller has."""

from __future__ import annotations

import functools
import hmac
from pathlib import Path
from typing import Any

import yaml

from server.access.key import Key, KeyFileError, digest_of, read_key
from server.access.watched import Watched, contents

_MOST = 1 << 20  # bytes of the file: it is read between two requests
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Keys:
    """Holds the keys of a file. Errors: KeyFileError, of the constructor alone.

    A file that has changed is read before the next call is answered.
    """

    def __init__(self, path: Path) -> None:
        self._watched = Watched([path], functools.partial(read_keys, path), "keys")

    @property
    def current(self) -> tuple[Key, ...]:
        """Return the keys, as the file has them now."""
        return self._watched.current()

    def of(self, token: str) -> Key | None:
        """Return the key of a token, whatever it is worth; None where there is none.

        All keys are compared, each in constant time: how long it takes tells nothing of any digest.
        """
        digest = digest_of(token) or ""
        match = None
        for key in self.current:
            if hmac.compare_digest(key.digest, digest):
                match = key
        return match

    def called(self, caller: str) -> Key | None:
        """Return the key that a caller is called after (Key.caller); None where there is none any more."""
        return next((key for key in self.current if key.caller == caller), None)


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read a file of keys. Errors: KeyFileError, which names what is wrong and where."""
    try:
        data = contents(path, _MOST)
    except ValueError as error:
        raise KeyFileError(f"keys: {path} {error}") from None
    try:
        content = yaml.load(data, _Loader)
    # A tag that its value does not fit (!!int '', !!bool perhaps) fails with whatever PyYAML's own code stumbles over.
    except (ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, yaml.YAMLError) as error:
        where = getattr(error, "problem_mark", None)  # the sentence of the error may have a part of the file in it
        line = "" if where is None else f" in line {where.line + 1}"
        raise KeyFileError(f"keys: {path} cannot be read as YAML{line}") from None
    if not isinstance(content, dict) or set(content) != {"keys"} or not isinstance(content["keys"], list):
        raise KeyFileError(f"keys: {path} must have one field, keys, with a list in it")
    keys = [read_key(entry, f"keys: {path}: entry {number}") for number, entry in enumerate(content["keys"], 1)]
    for field in ("name", "digest"):
        seen: set[str] = set()
        for key in keys:
            if (value := getattr(key, field)) in seen:
                raise KeyFileError(f"keys: {path} has the {field} of {key.name} more than once")
            seen.add(value)
    return tuple(keys)


__all__ = ["Keys", "read_keys"]
