"""What a single file holds, told by the names of its tensors; what latentd does not serve is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.header import StoredTensor
from pipeline.errors import CheckpointError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CONTEXT = "transformer_blocks.0.attn2.to_k.weight"  # [channels, width of the text encoder], after its block's name
_WORDS = "token_embedding.weight"  # [tokens, width], in every text encoder
_INPUT = f"{UNET}input_blocks.0.0.weight"  # [channels, channels in, 3, 3]


@dataclass(frozen=True)
class Family:
    name: str
    clip: str  # whose text encoder: a key of the mapping table
    activation: str
    pad: str  # the token that fills a text up


SD1 = Family("Stable Diffusion 1.x", "clip", "quick_gelu", "<|endoftext|>")
SD2 = Family("Stable Diffusion 2.x", "openclip", "gelu", "!")
# Of the first of its two text encoders; the second is as SD 2's, whole and with its head.
SDXL = Family("Stable Diffusion XL", "clip", "quick_gelu", "<|endoftext|>")
HEADED = Family("Stable Diffusion XL's second text encoder", "openclip with its head", "gelu", "!")

# Where a text encoder lies: in the original files, and in those of Stability's later code (SD-Turbo).
_TEXTS = {
    "cond_stage_model.transformer.": SD1,
    "cond_stage_model.model.": SD2,
    "conditioner.embedders.0.transformer.": SD1,
    "conditioner.embedders.0.model.": SD2,
}
_TWO = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
_LABEL = f"{UNET}label_emb."
# Markers of models that are SDXL's networks, trained to another schedule.
_OTHER_XL = (
    (r"edm_(mean|std)$", "Playground v2.5, which is sampled as EDM is"),
    (r"edm_vpred\.", "CosXL, which is sampled as EDM is"),
)

# The first row that a tensor's name matches says what the file looks like.
_OTHERS = (
    (r"lora_(unet|te\d?)_|.*(\.lora_(up|down|A|B)\b|\.lora\.(up|down)\.|\.hada_w|\.lokr_w)", "a LoRA"),
    (r"(model\.diffusion_model\.)?joint_blocks\.", "a Stable Diffusion 3 checkpoint"),
    (r"(model\.diffusion_model\.)?double_blocks\.", "a Flux checkpoint"),
    (r"(model\.diffusion_model\.)?(layers|blocks|transformer_blocks)\.\d+\.", "a diffusion transformer"),
    (r"control_model\.|controlnet_cond_embedding\.|input_hint_block\.", "a ControlNet"),
    (r".*motion_modules\.", "an AnimateDiff motion module"),
    (r".*\.time_stack\.|.*\.time_mixer\.", "a video model"),
    (r"conditioner\.embedders\.1\.", "an SDXL checkpoint without its first text encoder"),
    (r"depth_model\.", "a depth-to-image model"),
    (r"noise_augmentor\.|embedder\.", "an unCLIP model"),
    (r"model\.diffusion_model\.label_emb\.", "an SDXL refiner, or a model conditioned on classes or pictures"),
    (r"emb_params$|string_to_param|clip_[lg]$", "a textual-inversion embedding"),
)
_ALONE = (
    (r"input_blocks\.", "a UNet alone"),
    (r"(first_stage_model\.)?(encoder|decoder)\.(down|up|mid)", "a VAE alone"),
    (r"(unet\.|vae\.|text_encoder\.)?(down_blocks|up_blocks|mid_block|conv_in|text_model)\.", "one part of a folder"),
)
_BY_CHANNELS = {5: "a depth-to-image model", 7: "an upscaler", 8: "an instruct-pix2pix model"}


def recognise(path: Path, tensors: dict[str, StoredTensor]) -> tuple[Family, tuple[str, ...]]:
    """Tell the family, and the prefix of each of its text encoders.

    Errors: CheckpointError that names what it is instead.
    """
    two = _has(_LABEL, tensors) and all(_has(prefix, tensors) for prefix in _TWO)
    if other := _first(_OTHER_XL if two else _OTHERS, tensors):
        raise _refusal(path, other)
    texts = [prefix for prefix in _TEXTS if _has(prefix, tensors)]
    parts = {"UNet": _INPUT in tensors, "VAE": _has(VAE, tensors), "text encoder": bool(texts)}
    if parts["UNet"] and len(tensors[_INPUT].shape) > 1:
        channels = tensors[_INPUT].shape[1]
        if channels in _BY_CHANNELS:
            raise _refusal(path, f"{_BY_CHANNELS[channels]} (its UNet takes {channels} channels)")
    missing = [part for part, there in parts.items() if not there]
    if not parts["UNet"] or len(missing) == 2:
        raise _refusal(path, _first(_ALONE, tensors) or _unknown(tensors))
    if missing:
        raise _refusal(path, f"a checkpoint without its {missing[0]}")
    if two:
        widths, wanted = [_width(tensors, prefix, _WORDS) for prefix in _TWO], _width(tensors, UNET, CONTEXT)
        if None in widths or wanted != sum(width for width in widths if width):
            raise CheckpointError(
                f"{path}: its UNet takes a context {wanted} wide, but its two text encoders are {widths[0]} and "
                f"{widths[1]} wide"
            )
        return SDXL, _TWO
    family, prefix = _fitting(path, tensors, texts)
    return family, (prefix,)


def _fitting(path: Path, tensors: dict[str, StoredTensor], texts: list[str]) -> tuple[Family, str]:
    """Return the one text encoder that the UNet was trained with: its width is that of the UNet's context."""
    wanted = _width(tensors, UNET, CONTEXT)
    widths = {prefix: _width(tensors, prefix, _WORDS) for prefix in texts}
    fitting = [prefix for prefix in texts if wanted == widths[prefix] is not None] if len(texts) > 1 else texts
    if not fitting or (wanted and (widths[fitting[0]] or wanted) != wanted):
        encoders = ", ".join(f"{prefix}* is {width}" for prefix, width in widths.items())
        raise CheckpointError(
            f"{path}: its UNet takes a context {wanted} wide, but of its text encoders {encoders} wide"
        )
    if len(fitting) > 1:
        raise CheckpointError(f"{path} has {len(fitting)} text encoders that fit its UNet: {', '.join(fitting)}")
    return _TEXTS[fitting[0]], fitting[0]


def _width(tensors: dict[str, StoredTensor], prefix: str, ending: str) -> int | None:
    """Return the last side of the first matrix below a prefix whose name ends so."""
    found = (t.shape for name, t in tensors.items() if name.startswith(prefix) and name.endswith(ending))
    return next((shape[1] for shape in found if len(shape) == 2), None)


def _has(prefix: str, tensors: Iterable[str]) -> bool:
    return any(name.startswith(prefix) for name in tensors)


def _first(rows: tuple[tuple[str, str], ...], tensors: Iterable[str]) -> str | None:
    return next((what for pattern, what in rows if any(re.match(pattern, name) for name in tensors)), None)


def _unknown(tensors: dict[str, StoredTensor]) -> str:
    few = ", ".join(sorted(tensors)[:3]) or "none at all"
    return f"nothing that latentd knows (its tensors: {few[:200]})"


def _refusal(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} looks like {what}; latentd reads single files of Stable Diffusion 1.x, 2.x and XL text-to-image models"
    )
