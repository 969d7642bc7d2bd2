"""What is known of a single-file checkpoint without opening it: its name, and the settings in a file beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipeline.checkpoint.settings import check_settings
from pipeline.config import Config
from pipeline.errors import CheckpointError
from pipeline.files import regular_size
from pipeline.source import Folder

PREDICTIONS = ("epsilon", "v_prediction")
_SUFFIX = ".safetensors"
_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


def is_single_file(model: Path) -> bool:
    """Return whether `model` is a file, or at least named like one. A checkpoint folder is neither."""
    return not os.path.isdir(model) and (model.suffix.lower() in (_SUFFIX, *_PICKLES) or os.path.isfile(model))


def check_single_file(model: Path) -> None:
    """Check that there is such a file. Errors: CheckpointError for none, a pickle, or a file of another kind."""
    suffix = model.suffix.lower()
    if suffix in _PICKLES:
        raise CheckpointError(
            f"{model} is a pickle by its name; a pickle can run code, so latentd reads only safetensors: "
            f"download the model's .safetensors file, or convert it where you trust it"
        )
    try:
        regular_size(model)
    except FileNotFoundError:
        raise CheckpointError(f"{model} is not there, and nothing is downloaded") from None
    if suffix != _SUFFIX:
        raise CheckpointError(
            f"{model} is no checkpoint; latentd reads a folder in diffusers' layout or a {_SUFFIX} file"
        )


def settings_path(model: Path) -> Path:
    """Return `name.latentd.json` beside `name.safetensors`: one file a model, because many share a folder."""
    return model.with_suffix(".latentd.json")


def own_settings(model: Path) -> dict[str, Any]:
    """Read that file: the keys of a latentd.json; empty where there is none.

    Errors: CheckpointError naming the file.
    """
    path = settings_path(model)
    if not os.path.lexists(path):
        return {}
    config = Config(Folder(path.parent), path.name)
    check_settings(config)
    config.one_of("prediction", PREDICTIONS, PREDICTIONS[0])
    config.flag("rescale_betas_zero_snr", False)
    return {key: config.get(key) for key in config}
