"""A file of keys: YAML, with one field, keys, and a list in it. What is wrong with it is told, and no value of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml import events
from yaml.composer import Composer

from server.access.key import Key, KeyFileError, read_key
from server.access.watched import contents

_MOST = 1 << 20  # bytes of the file
_BEFORE = ("StreamStart", "DocumentStart", "MappingStart", "Scalar", "SequenceStart")  # the entries
_AFTER = ("SequenceEnd", "MappingEnd", "DocumentEnd", "StreamEnd")
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(Composer, _Safe):
    """Makes nodes of events, one after the other; libyaml's own composer makes those of a whole file, and no other."""

    def __init__(self, data: bytes) -> None:
        _Safe.__init__(self, data)
        Composer.__init__(self)


def read_keys(path: Path) -> tuple[Key, ...]:
    """Read a file of keys. Errors: KeyFileError, which names what is wrong and where."""
    try:
        data = contents(path, _MOST)
    except ValueError as error:
        raise KeyFileError(f"keys: {path} {error}") from None
    try:
        entries = list(_entries(path, data))
    # A tag that its value does not fit (!!int '', !!bool perhaps) fails with whatever PyYAML's own code stumbles over.
    except (ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, yaml.YAMLError) as error:
        where = getattr(error, "problem_mark", None)  # the sentence of the error may have a part of the file in it
        line = "" if where is None else f" in line {where.line + 1}"
        raise KeyFileError(f"keys: {path} cannot be read as YAML{line}") from None
    keys = [read_key(entry, f"keys: {path}: entry {number}") for number, entry in enumerate(entries, 1)]
    for field in ("name", "digest"):
        seen: set[str] = set()
        for key in keys:
            if (value := getattr(key, field)) in seen:
                raise KeyFileError(f"keys: {path} has the {field} of {key.name} more than once")
            seen.add(value)
    return tuple(keys)


def _entries(path: Path, data: bytes) -> Iterator[Any]:
    """Yield the entries of a file, each as it is read.

    The nodes of all of them at once would be a hundred thousand objects, through which the garbage collector goes again
    and again: of 8,000 keys 0.45 of 0.9 s, and 0.13 s in one go, in which no other thread runs.
    Errors: KeyFileError; PyYAML's.
    """
    loader: Any = _Loader(data)

    def expect(*kinds: str) -> None:
        for kind in kinds:
            event = loader.get_event()
            if not isinstance(event, getattr(events, f"{kind}Event")) or getattr(event, "value", "keys") != "keys":
                raise KeyFileError(f"keys: {path} must have one field, keys, with a list in it")

    expect(*_BEFORE)
    while not loader.check_event(events.SequenceEndEvent):
        yield loader.construct_document(loader.compose_node(None, None))
    expect(*_AFTER)


__all__ = ["read_keys"]
