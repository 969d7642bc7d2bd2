"""The JSON configs of a converted single file: what its shapes say, and for the rest what its family has.

What no shape tells, and every published model of the family has: 32 groups; in SD 1 eight heads at every level, in
SD 2 and XL heads of 64 channels; heads of 64 in all text encoders; the VAE's scale; the schedule. The schedule has no
`timestep_spacing`, as the published folders have none, so that each sampler keeps its own, unless the file says that
it was trained to zero terminal SNR.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import clip_vocabulary
from pipeline.checkpoint.single_file.kinds import HEADED, SD1, SDXL, Family
from pipeline.checkpoint.single_file.layout import TextLayout, UnetLayout, VaeLayout
from pipeline.checkpoint.single_file.marks import Trained
from pipeline.conditions.sizes import SIZES
from pipeline.errors import CheckpointError

Config = dict[str, Any]

# A single file names none: dpmpp_2m, as everywhere that none is named. A UNet that takes its guidance was distilled.
_SCHEDULER, _DISTILLED = "DPMSolverMultistepScheduler", "LCMScheduler"
_GROUPS, _HEADS, _HEAD_WIDTH = 32, 8, 64
_XL_INDEX: Config = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}


def configs(
    path: Path,
    family: Family,
    unet: UnetLayout,
    vae: VaeLayout,
    texts: Sequence[TextLayout],
    said: Trained,
) -> dict[str, Config]:
    """Write each config, by its name in the folder. Errors: CheckpointError for widths that no family rule fits."""
    factor = 2 ** (len(vae.channels) - 1)
    # What the published models were trained at: SDXL at 1024, SD 2 in its velocity form at 768, every other at 512.
    side = 1024 if family is SDXL else 512 if family is SD1 or said.prediction == "epsilon" else 768
    for text in texts:
        if text.vocab_size != clip_vocabulary.SIZE:
            raise CheckpointError(
                f"{path}: its text encoder knows {text.vocab_size} tokens, and CLIP's vocabulary has "
                f"{clip_vocabulary.SIZE}"
            )
        _check_widths(path, "text encoder's width", (text.width,), _HEAD_WIDTH)
    if unet.linear != (family is not SD1):
        raise CheckpointError(
            f"{path}: its text encoder is that of {family.name}, its UNet's projections are "
            f"{'linear' if unet.linear else 'convolutions'}, which that family's are not; so its heads are unknown"
        )
    _check_widths(path, "UNet's channels", unet.channels, _GROUPS if family is SD1 else _HEAD_WIDTH)
    _check_widths(path, "VAE's channels", vae.channels, _GROUPS)
    scheduler = _DISTILLED if unet.guidance_width else _SCHEDULER
    written = {
        "text_encoder/config.json": _text(family, texts[0]),
        "unet/config.json": _unet(family, unet, side // factor),
        "vae/config.json": _vae(family, vae, side),
        "scheduler/scheduler_config.json": _schedule(said, scheduler),
        "model_index.json": _index(scheduler),
    }
    if family is SDXL:
        _, second = texts
        written["text_encoder_2/config.json"] = _text(HEADED, second) | {
            "architectures": ["CLIPTextModelWithProjection"],
            "eos_token_id": 2,  # as published, which means the highest number of a text
            "projection_dim": second.projection,
        }
        written["unet/config.json"] |= _added(path, unet, second)
        written["model_index.json"] |= _XL_INDEX
    return written


def _added(path: Path, unet: UnetLayout, second: TextLayout) -> Config:
    """Write what is embedded beside the time: a text's embedding, and each of six sizes in equally many numbers."""
    given, pooled = unet.given or 0, second.projection or 0
    if given <= pooled or (given - pooled) % SIZES:
        raise CheckpointError(
            f"{path}: its UNet is given {given} numbers beside the time, which a text of {pooled} and {SIZES} sizes do "
            f"not make"
        )
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (given - pooled) // SIZES,
        "projection_class_embeddings_input_dim": given,
    }


def _check_widths(path: Path, what: str, widths: tuple[int, ...], unit: int) -> None:
    if any(width % unit for width in widths):
        raise CheckpointError(f"{path}: its {what} {', '.join(map(str, widths))} must be multiples of {unit}")


def _text(family: Family, text: TextLayout) -> Config:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "bos_token_id": clip_vocabulary.SIZE - 2,
        "eos_token_id": clip_vocabulary.SIZE - 1,
        "pad_token_id": 0 if family.pad == "!" else clip_vocabulary.SIZE - 1,
        "hidden_act": family.activation,
        "hidden_size": text.width,
        "intermediate_size": text.hidden,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": text.tokens,
        "num_attention_heads": text.width // _HEAD_WIDTH,
        "num_hidden_layers": text.layers,
        "vocab_size": text.vocab_size,
    }


def _unet(family: Family, unet: UnetLayout, sample_size: int) -> Config:
    return {
        "_class_name": "UNet2DConditionModel",
        # diffusers' name for the number of heads.
        "attention_head_dim": _HEADS if family is SD1 else [width // _HEAD_WIDTH for width in unet.channels],
        "block_out_channels": unet.channels,
        "cross_attention_dim": unet.context_width,
        "down_block_types": [f"{'CrossAttn' * attends}DownBlock2D" for attends in unet.attends_down],
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": unet.in_channels,
        "layers_per_block": _one(unet.layers),
        "mid_block_type": "UNetMidBlock2DCrossAttn" if unet.middle else None,
        "norm_eps": 1e-5,
        "norm_num_groups": _GROUPS,
        "out_channels": unet.out_channels,
        "sample_size": sample_size,
        "time_cond_proj_dim": unet.guidance_width,
        "transformer_layers_per_block": _one(unet.depth),
        "up_block_types": [f"{'CrossAttn' * attends}UpBlock2D" for attends in unet.attends_up],
        "use_linear_projection": unet.linear,
    }


def _one(values: tuple[int, ...]) -> int | tuple[int, ...]:
    return values[0] if len(set(values)) == 1 else values


def _vae(family: Family, vae: VaeLayout, side: int) -> Config:
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": vae.channels,
        "down_block_types": ["DownEncoderBlock2D"] * len(vae.channels),
        "in_channels": vae.image_channels,
        "latent_channels": vae.latent_channels,
        "layers_per_block": vae.layers,
        "mid_block_add_attention": vae.mid_attention,
        "norm_num_groups": _GROUPS,
        "out_channels": vae.image_channels,
        "sample_size": side,
        "scaling_factor": 0.13025 if family is SDXL else 0.18215,
        "up_block_types": ["UpDecoderBlock2D"] * len(vae.channels),
        "use_post_quant_conv": vae.post_quant,
        "use_quant_conv": vae.quant,
    }


def _schedule(said: Trained, scheduler: str) -> Config:
    return {
        "_class_name": scheduler,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": said.prediction,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        # Lin et al. 2023, 3.3: whoever trains the last timestep without signal has to start at it.
        **({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if said.zero_snr else {}),
    }


def _index(scheduler: str) -> Config:
    absent = ("feature_extractor", "image_encoder", "safety_checker")
    return {
        "_class_name": "StableDiffusionPipeline",
        "requires_safety_checker": False,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **{name: [None, None] for name in absent},
    }
