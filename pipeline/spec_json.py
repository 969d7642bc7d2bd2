"""A spec from the JSON that Spec.to_json gives: how one process tells another what it read from a checkpoint."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from pipeline.errors import CheckpointError
from pipeline.networks import ClipSpec
from pipeline.spec import Spec

_LONGEST = 64  # entries of a tuple; a UNet has 4 blocks


def spec_from_json(values: object) -> Spec:
    """Return the spec whose `to_json` is `values`. A field with a default may be missing.

    Errors: CheckpointError that names the field, for one that is missing, unknown or of another type.
    """
    return _read(Spec, values, "spec")


def clip_from_json(values: object) -> ClipSpec:
    """Return the spec of a CLIP folder whose `to_json` is `values`. Errors: those of spec_from_json."""
    return _read(ClipSpec, values, "spec")


def _read(wanted: Any, value: Any, name: str) -> Any:
    if is_dataclass(wanted):
        return _object(wanted, value, name)
    if get_origin(wanted) is tuple:
        if not isinstance(value, list) or len(value) > _LONGEST:
            raise _refusal(name, value, f"a list of at most {_LONGEST}")
        return tuple(_read(get_args(wanted)[0], entry, f"{name}[{i}]") for i, entry in enumerate(value))
    kinds = get_args(wanted) or (wanted,)  # `str | None` has two
    if value is None and type(None) in kinds:
        return None
    if parts := [kind for kind in kinds if is_dataclass(kind)]:
        return _object(parts[0], value, name)
    if float in kinds and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if type(value) in kinds and not isinstance(value, float):
        return value
    raise _refusal(name, value, " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds))


def _object(wanted: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise _refusal(name, value, "an object")
    hints = get_type_hints(wanted)
    if unknown := sorted(value.keys() - hints.keys()):
        raise CheckpointError(f"{name} has a field {unknown[0]!r:.80}, which this version does not know")
    required = [field.name for field in fields(wanted) if field.default is MISSING]
    if missing := [key for key in required if key not in value]:
        raise CheckpointError(f"{name}.{missing[0]} is missing")
    return wanted(**{key: _read(hints[key], entry, f"{name}.{key}") for key, entry in value.items()})


def _refusal(name: str, value: object, wanted: str) -> CheckpointError:
    return CheckpointError(f"{name} is {value!r:.80}; it must be {wanted}")
