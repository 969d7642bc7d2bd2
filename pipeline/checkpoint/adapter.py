"""A style adapter (IP-Adapter, Ye et al. 2023) from the file that is published, put into a checkpoint's UNet.

Its file numbers the attentions as diffusers lists them, self-attentions too: those to the text are 1, 3, 5, ...
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from pipeline.checkpoint.clip import JUDGE
from pipeline.checkpoint.header import read_header
from pipeline.checkpoint.opened import Checkpoint
from pipeline.checkpoint.weights import Weights
from pipeline.conditions.style import Projection
from pipeline.errors import CheckpointError

FOLDER, ENCODER = "ip_adapter", "image_encoder"  # where a checkpoint may have one
PART = "style"  # of the weights: what projects an embedding to tokens
_MOST_TOKENS = 64  # the published ones have 4
# What another kind of adapter has, by which it is told.
_OTHER_KINDS = {
    r"image_proj\.latents$": "an IP-Adapter Plus, whose image projection is a resampler",
    r"(image_proj\.perceiver_resampler\.|ip_adapter\.\d+\.to_\w+_lora\.)": "an IP-Adapter FaceID",
    r"image_proj\.(proj\.[0-9]|ff\.)": "an IP-Adapter Full Face or FaceID, whose image projection is an MLP",
}


def adapter_in(folder: Path) -> Path | None:
    """Return the adapter's file that a checkpoint brings in `ip_adapter/`; None where it has no such folder.

    Errors: CheckpointError where it holds none, or several.
    """
    place = folder / FOLDER
    if not place.is_dir():
        return None
    files = sorted(place.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(
            f"{place} holds {len(files)} .safetensors files; leave one there, or name one with --style-adapter"
        )
    return files[0]


def encoder_in(folder: Path) -> Path | None:
    """Return the image encoder's folder that a checkpoint brings: `image_encoder/`, else the judge, whose image tower
    then serves the adapter too and lies there once; None where it has neither."""
    return next((place for name in (ENCODER, JUDGE) if (place := folder / name).is_dir()), None)


def with_adapter(checkpoint: Checkpoint, file: Path) -> Checkpoint:
    """Return the checkpoint with the adapter's tensors among its UNet's, and its tokens in the spec.

    Errors: CheckpointError for a file that is no such adapter, or one for another UNet.
    """
    if not os.path.lexists(file):
        raise CheckpointError(f"style adapter {file} is not there; give an IP-Adapter's .safetensors file")
    if file.suffix != ".safetensors":
        raise CheckpointError(f"style adapter {file} is no .safetensors file by its name; latentd reads no other")
    tensors, unet = read_header(file)[0], checkpoint.spec.unet
    for pattern, kind in _OTHER_KINDS.items():
        if any(re.match(pattern, name) for name in tensors):
            raise CheckpointError(f"{file} looks like {kind}; latentd reads the plain IP-Adapter (ip-adapter_sd15)")
    projection = tensors.get("image_proj.proj.weight")
    if projection is None or len(projection.shape) != 2 or not any(name.startswith("ip_adapter.") for name in tensors):
        listed = ", ".join(name[:60] for name in sorted(tensors)[:3])
        raise CheckpointError(f"{file} looks like no IP-Adapter (its tensors: {listed}, ...)")
    rows, width = projection.shape[0], unet.context_width
    tokens = rows // width
    if rows != tokens * width or not 0 < tokens <= _MOST_TOKENS:
        raise CheckpointError(
            f"{file} is for another UNet: it projects a picture to {rows} numbers, and tokens of the UNet of "
            f"{checkpoint.path} have {width}"
        )
    names = {
        f"ip_adapter.{2 * i + 1}.to_{kind}_ip.weight": (f"{path}.to_{kind}_ip.weight", (channels, width))
        for i, (path, channels) in enumerate(unet.text_layers)
        for kind in "kv"
    }
    shapes = _shapes(tokens, width, projection.shape[1])
    whole = Weights({PART: tensors}, {PART: file})
    whole.check(PART, shapes | {name: shape for name, (_, shape) in names.items()}, f"the UNet of {checkpoint.path}")
    weights = checkpoint.weights.with_tensors("unet", {ours: tensors[name] for name, (ours, _) in names.items()})
    weights = weights.with_tensors(PART, {name: tensors[name] for name in shapes})
    spec = replace(checkpoint.spec, unet=replace(unet, style_tokens=tokens))
    return replace(checkpoint, spec=spec, weights=weights, adapter=file)


def projection_of(checkpoint: Checkpoint) -> Projection:
    """Return what projects an embedding to tokens, of a checkpoint with an adapter."""
    unet, tensors = checkpoint.spec.unet, checkpoint.weights.tensors(PART)
    embedding = tensors["image_proj.proj.weight"].shape[1]
    shapes = _shapes(unet.style_tokens, unet.context_width, embedding)
    return Projection(*(checkpoint.weights.float32(PART, name, shape) for name, shape in shapes.items()))


def _shapes(tokens: int, width: int, embedding: int) -> dict[str, tuple[int, ...]]:
    return {
        "image_proj.proj.weight": (tokens * width, embedding),
        "image_proj.proj.bias": (tokens * width,),
        "image_proj.norm.weight": (width,),
        "image_proj.norm.bias": (width,),
    }
