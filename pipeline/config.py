"""One JSON config of a checkpoint: typed reads whose errors name the file, the key and the value.

An absent key and one that is null mean the same: the default, or where there is none, an error. Where the library
that wrote the config takes a null for something else, whoever reads the key asks `holds`. Equal values may be written
differently: 64 and 64.0, or a list of equal ones for the one.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError
from pipeline.files import parse_json
from pipeline.source import Source

_LARGEST = 1 << 20  # bytes of a config
# Far above any model's, and low enough that what is made of them neither overflows nor fills the memory.
_MOST_INTEGER = 1 << 16
_MOST_NUMBER = 1e6


class Config:
    """Reads the object in the file `name` of a checkpoint. Errors of everything here: CheckpointError."""

    def __init__(self, source: Source, name: str) -> None:
        self.path = source.place(name)
        self._values = read_object(source, name, _LARGEST)

    def get(self, key: str) -> Any:
        """Return the value as it stands; None when it is absent."""
        return self._values.get(key)

    def holds(self, key: str) -> bool:
        """Tell whether the key is there, be it with a null."""
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def section(self, key: str) -> Config:
        """Return the object at `key`, whose errors name it too; where there is none, an empty one."""
        value = self._wanted(key, {})
        if not isinstance(value, dict):
            raise self.refusal(key, "it must be an object")
        part = copy.copy(self)
        part.path, part._values = Path(f"{self.path} ({key})"), value
        return part

    def number(
        self, key: str, default: float | None = None, *, least: float = -_MOST_NUMBER, most: float = _MOST_NUMBER
    ) -> float:
        """Read a finite number from `least` to `most`."""
        value = self._wanted(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.refusal(key, f"it must be a finite number from {least:g} to {most:g}")
        return float(value)

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = _MOST_INTEGER) -> int:
        """Read an integer from `least` to `most`."""
        value = _whole(self._wanted(key, default))
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.refusal(key, f"it must be an integer from {least} to {most}")
        return value

    def integers(
        self,
        key: str,
        length: int | None = None,
        default: int | None = None,
        *,
        most: int = _MOST_INTEGER,
        longest: int = _MOST_INTEGER,
    ) -> tuple[int, ...]:
        """Read a list of at most `longest` integers from 1 to `most`, or one that stands for `length` equal ones."""
        value = _whole(self._wanted(key, default))
        values = [value] * length if isinstance(value, int) and length else value
        values = [_whole(one) for one in values] if isinstance(values, list) else values
        if (
            not isinstance(values, list)
            or not 1 <= len(values) <= longest
            or (length and len(values) != length)
            or not all(isinstance(v, int) and not isinstance(v, bool) and 1 <= v <= most for v in values)
        ):
            raise self.refusal(key, f"it must be {length or f'at most {longest}'} integers from 1 to {most}")
        return tuple(values)

    def same(self, key: str, length: int, default: int | None = None, *, most: int = _MOST_INTEGER) -> int:
        """Read one integer, or a list of `length` equal ones that says the same."""
        values = self.integers(key, length, default, most=most)
        if len(set(values)) != 1:
            raise self.refusal(key, "latentd does only equal ones")
        return values[0]

    def flag(self, key: str, default: bool) -> bool:
        value = self._wanted(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, "it must be true or false")
        return value

    def one_of(self, key: str, choices: Mapping[str, object] | tuple[str, ...], default: str) -> str:
        value = self._wanted(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.refusal(key, f"latentd does {', '.join(choices)}")
        return value

    def require(self, fixed: Mapping[str, Any]) -> None:
        """Check that each key is absent, null, or has the one value that latentd does, or a list of nothing else."""
        for key, wanted in fixed.items():
            value = self.get(key)
            values = value if isinstance(value, list) and value and not isinstance(wanted, list) else [value]
            if any(one not in (None, wanted) for one in values):
                raise self.refusal(key, f"latentd does only {json.dumps(wanted)}")

    def refusal(self, key: str, reason: str) -> CheckpointError:
        """Return an error that says what stands at `key`, in JSON's own words."""
        try:
            shown = json.dumps(self.get(key))
        except RecursionError:
            shown = "nested too deep"
        shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
        return CheckpointError(f"{self.path}: {key} is {shown if key in self._values else 'missing'}; {reason}")

    def _wanted(self, key: str, default: Any) -> Any:
        value = self.get(key)
        return default if value is None else value


def _whole(value: Any) -> Any:
    """Return an integer that was written with a point and a zero, as an integer; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_object(source: Source, name: str, largest: int) -> dict[str, Any]:
    """Return the JSON object in a file of at most `largest` bytes."""
    path = source.place(name)
    try:
        values = parse_json(source.read(name, largest))
    except FileNotFoundError:
        kinds = "a folder in diffusers' layout, or a .safetensors file"
        raise CheckpointError(f"{path} is missing; a checkpoint is {kinds}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {_KINDS[type(values)]}")
    return values


_KINDS = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}
