"""What is known of a single-file checkpoint without opening it: its name, and the settings in a file beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError

PREDICTIONS = ("epsilon", "v_prediction")
_SUFFIX = ".safetensors"
_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


def is_single_file(model: Path) -> bool:
    """Is `model` a file, or at least named like one? A checkpoint folder is neither."""
    return not model.is_dir() and (model.suffix.lower() in (_SUFFIX, *_PICKLES) or model.is_file())


def check_single_file(model: Path) -> None:
    """Errors: CheckpointError for a pickle, a file of another kind, or one that is not there."""
    suffix = model.suffix.lower()
    if suffix in _PICKLES:
        raise CheckpointError(
            f"{model} is a pickle by its name; a pickle can run code, so latentd reads only safetensors: "
            f"download the model's .safetensors file, or convert it where you trust it"
        )
    if not model.is_file():
        raise CheckpointError(f"{model} does not exist")
    if suffix != _SUFFIX:
        raise CheckpointError(
            f"{model} is no checkpoint; latentd reads a folder in diffusers' layout or a {_SUFFIX} file"
        )


def settings_path(model: Path) -> Path:
    """`name.latentd.json` beside `name.safetensors`: one file a model, because many share a folder."""
    return model.with_suffix(".latentd.json")


def own_settings(model: Path) -> dict[str, Any]:
    """What that file holds: the keys of a latentd.json, and `prediction`; empty where there is none.

    Errors: CheckpointError naming the file.
    """
    path = settings_path(model)
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(values).__name__}")
    told = values.get("prediction")
    if told is not None and told not in PREDICTIONS:
        raise CheckpointError(f"{path}: prediction is {told!r}; it must be one of {', '.join(PREDICTIONS)}")
    return values
