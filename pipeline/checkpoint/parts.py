"""Which files hold the weights of a part of a checkpoint, and what old checkpoints call their tensors. No torch."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from pipeline.errors import CheckpointError
from pipeline.files import parse_json, read_file, regular_size

# The file's name without its ending, by the part (and folder) of the checkpoint.
STEMS = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
# SDXL's second text encoder. Both towers are one network and one part; the names of this one begin with its folder's.
SECOND = "text_encoder_2"
_LARGEST_INDEX = 16 << 20  # bytes; SDXL's UNet in shards has 0.2 million
_MOST_SHARDS = 1000
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")

log = logging.getLogger("latentd.checkpoint")

# What else a text encoder may have been saved with: CLIP's heads, its position numbers, and its other tower.
_HEAD = re.compile(r"(text_projection|logit_scale|visual_projection|vision_model)(\.|$)")

_VISION, _SHARED = re.compile(r"(vision_model|visual_projection)\."), re.compile(r"(text_projection|logit_scale)(\.|$)")

# Old VAEs name the projections of their attention so, and store them as 1x1 convolutions.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def weight_files(checkpoint: Path, part: str) -> list[Path]:
    """Find the safetensors files with the weights of `part`: one, or the shards of an index.

    Full precision before the variants of half of it. Errors: CheckpointError where there are none, where the
    weights are only there as a pickle, or where an index names a file outside its folder.
    """
    return files_of(checkpoint / part, STEMS[part])


def files_of(folder: Path, stem: str) -> list[Path]:
    """Find the safetensors files in `folder` called `stem`, as `weight_files` does. Errors: CheckpointError."""
    for variant in ("", ".fp16", ".bf16"):
        if files := _files(folder, stem, variant):
            return files
    others = _other_variants(folder, stem)
    if len(others) > 1:
        listed = ", ".join(variant[1:] for variant in others)
        raise CheckpointError(f"{folder} holds its weights in several variants, {listed}; leave one of them there")
    if others:
        log.info("%s: the weights are the variant %s, the only one there", folder, others[0][1:])
        return _files(folder, stem, others[0])
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds its weights as a pickle ({pickles[0]}); a pickle can run code, so latentd reads only "
            f"safetensors: save the model again with safe_serialization=True"
        )
    raise CheckpointError(f"{folder / stem}.safetensors is missing")


def _files(folder: Path, stem: str, variant: str) -> list[Path]:
    whole, index = f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json"
    if os.path.lexists(folder / whole):
        _check(folder / whole)
        return [folder / whole]
    return _shards(folder / index) if os.path.lexists(folder / index) else []


def _other_variants(folder: Path, stem: str) -> list[str]:
    """List the variants that a folder has of some other name, each with its dot.

    SD 1.5 is published with non_ema beside the averaged weights. diffusers is told which variant to take; one alone
    needs no telling.
    """
    wanted = re.compile(rf"{re.escape(stem)}(?:(\.\w+)\.safetensors|\.safetensors\.index(\.\w+)\.json)")
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted({match[1] or match[2] for name in names if (match := wanted.fullmatch(name))})


def _shards(index: Path) -> list[Path]:
    try:
        names = set(parse_json(read_file(index, _LARGEST_INDEX))["weight_map"].values())
        outside = sorted(name for name in names if not re.fullmatch(r"[^./\\:\0][^/\\:\0]*\.safetensors", name))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} cannot be read as an index of shards: {error!r}") from None
    if outside or not 0 < len(names) <= _MOST_SHARDS:
        raise CheckpointError(
            f"{index} must name 1 to {_MOST_SHARDS} .safetensors files beside it, not {outside[:3] or len(names)}"
        )
    shards = [index.parent / name for name in sorted(names)]
    for shard in shards:
        _check(shard)
    return shards


def _check(path: Path) -> None:
    try:
        regular_size(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing, though a link or an index names it") from None


def known_name(part: str, name: str) -> str | None:
    """Return latentd's name of the tensor that a checkpoint calls `name`; None for one that is no weight."""
    if part in ("vision", "head"):  # of a CLIP folder, which has its towers in one file
        wanted = _VISION if part == "vision" else _SHARED
        return name if wanted.match(name) and not name.endswith(".position_ids") else None
    if part == SECOND:
        if not name.startswith("text_projection."):
            within = known_name("text_encoder", name)
            return within and f"{SECOND}.{within}"
        return f"{SECOND}.{name}"
    if part == "text_encoder":
        if name.startswith(f"{SECOND}."):  # of an artifact, which has both towers in one file
            return name
        if _HEAD.match(name):
            return None
        if not name.startswith("text_model."):  # newer transformers leave the prefix away
            name = f"text_model.{name}"
        return None if name == "text_model.embeddings.position_ids" else name
    if part == "vae":
        return re.sub(
            r"(?<=\.mid_block\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)",
            lambda match: _OLD_ATTENTION[match[1]],
            name,
        )
    return name
