"""One JSON config of a checkpoint: typed reads whose errors name the file, the key and the value.

An absent key and one that is null mean the same: the default, or where there is none, an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError

_LARGEST = 1 << 20  # bytes of a config


class Config:
    """The object in the file `name` of `checkpoint`. Errors of everything here: CheckpointError."""

    def __init__(self, checkpoint: Path, name: str) -> None:
        self.path = checkpoint / name
        self._values = read_object(self.path, _LARGEST)

    def get(self, key: str) -> Any:
        """The value as it stands; None when it is absent."""
        return self._values.get(key)

    def number(self, key: str, default: float | None = None, *, least: float = -math.inf) -> float:
        """A finite number of at least `least`."""
        value = self._wanted(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
            bound = "" if least == -math.inf else f" of at least {least:g}"
            raise self.refusal(key, f"it must be a finite number{bound}")
        return float(value)

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self._wanted(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.refusal(key, f"it must be an integer of at least {least}")
        return value

    def integers(self, key: str, length: int | None = None, default: int | None = None) -> tuple[int, ...]:
        """A list of positive integers, or one that stands for `length` equal ones."""
        value = self._wanted(key, default)
        values = [value] * length if isinstance(value, int) and length else value
        if (
            not isinstance(values, list)
            or not values
            or (length and len(values) != length)
            or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
        ):
            raise self.refusal(key, f"it must be {length or 'a list of'} positive integers")
        return tuple(values)

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
        """Each key is absent, null, or has the one value that latentd implements."""
        for key, wanted in fixed.items():
            if self.get(key) not in (None, wanted):
                raise self.refusal(key, f"latentd does only {json.dumps(wanted)}")

    def refusal(self, key: str, reason: str) -> CheckpointError:
        """An error that says what stands at `key`, in JSON's own words."""
        shown = json.dumps(self.get(key))
        shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
        return CheckpointError(f"{self.path}: {key} is {shown if key in self._values else 'missing'}; {reason}")

    def _wanted(self, key: str, default: Any) -> Any:
        value = self.get(key)
        return default if value is None else value


def read_object(path: Path, largest: int) -> dict[str, Any]:
    """The JSON object in a file of at most `largest` bytes."""
    try:
        size = path.stat().st_size
        if size > largest:
            raise CheckpointError(f"{path} has {size} bytes; latentd reads at most {largest}")
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a checkpoint is a folder in diffusers' layout") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {_KINDS[type(values)]}")
    return values


_KINDS = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}
