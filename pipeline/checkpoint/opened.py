"""A checkpoint, opened: what a user names, a folder in diffusers' layout or a single file, as spec and weights.

Nothing is written, beside it or elsewhere, and no weight is read yet.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.single_file import PREDICTIONS, is_single_file
from pipeline.checkpoint.single_file.read import read_single_file
from pipeline.checkpoint.vocabulary import FILES as VOCABULARY
from pipeline.checkpoint.weights import Weights, folder_weights
from pipeline.errors import CheckpointError
from pipeline.files import parse_json
from pipeline.source import Folder, Source
from pipeline.spec import Spec, read_spec

# What read_spec and ClipTokenizer read, where it is there.
SMALL_FILES = (
    "model_index.json",
    "latentd.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    *VOCABULARY,
    *(name.replace("tokenizer/", "tokenizer_2/", 1) for name in VOCABULARY),
)
_LARGEST = 16 << 20  # bytes of one; CLIP's tokenizer.json has 3.6 million


@dataclass(frozen=True)
class Checkpoint:
    path: Path  # the folder or the file
    source: Source
    spec: Spec
    weights: Weights
    adapter: Path | None = None  # the file of a style adapter, whose tensors are among the UNet's

    @property
    def id(self) -> str:
        """Return the name that clients use for the model."""
        return model_id(self.path)

    def small_files(self) -> dict[str, bytes]:
        """Read the configs and the tokenizer, by their names in diffusers' layout. Errors: CheckpointError."""
        return {name: self.source.read(name, _LARGEST) for name in SMALL_FILES if self.source.holds(name)}

    @property
    def has_safety_checker(self) -> bool:
        """Return whether the checkpoint brings a safety checker; latentd runs none, and says so."""
        named = parse_json(self.source.read("model_index.json", 1 << 20)).get("safety_checker")
        return named not in (None, [None, None])


def model_id(model: Path) -> str:
    """Return the folder's name, or the file's without its ending; a link's is its own, so that it can give a name."""
    return model.stem if is_single_file(model) else Path(os.path.abspath(model)).name


def open_checkpoint(model: Path, prediction: str = "auto") -> Checkpoint:
    """Read the configs and the headers of the weights.

    `prediction` is of a single file: see read_single_file. Errors: CheckpointError for what is no model.
    """
    if prediction not in ("auto", *PREDICTIONS):
        raise CheckpointError(f"prediction {str(prediction)!r} is unknown; there are: auto, {', '.join(PREDICTIONS)}")
    model = model.absolute()
    source: Source
    if is_single_file(model):
        source, weights = read_single_file(model, prediction)
        return Checkpoint(model, source, read_spec(source), weights)
    if prediction != "auto":
        raise CheckpointError(f"prediction {prediction} is for single files; {model} has its own scheduler config")
    if not os.path.isdir(model):
        raise CheckpointError(
            f"model {model} is not there, and nothing is downloaded; give a folder in diffusers' layout or a "
            f".safetensors file"
        )
    source = Folder(model)
    spec = read_spec(source)
    return Checkpoint(model, source, spec, folder_weights(model, spec.text_2 is not None))
