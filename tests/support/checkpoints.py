"""Small checkpoints with random weights, so that no test depends on a trained model.

Their numbers differ from Stable Diffusion's wherever they can, so that a constant that should have been read from a
config shows. Weights are float16, as published models are. Loadable by diffusers too, which is the tests' oracle.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model.clip import ClipText
from model.random import init_random
from model.unet import Unet
from model.vae import VaeDecoder, VaeEncoder
from pipeline.spec import read_spec

Config = dict[str, Any]

_START, _END = "<|startoftext|>", "<|endoftext|>"
# In the order in which they apply; the right side of each is made of what stands above it, or of single bytes.
_MERGES = (
    "t h", "th e</w>", "r e", "re d</w>", "a p", "ap p", "l e</w>", "app le</w>", "p h", "ph o", "t o</w>",
    "pho to</w>", "o f</w>", "b l", "bl u", "blu e</w>", "c a", "ca t</w>", "i n",
)  # fmt: skip

_TEXT: dict[str, Config] = {
    "sd1": {
        "hidden_act": "quick_gelu",
        "hidden_size": 48,
        "intermediate_size": 80,
        "layer_norm_eps": 3e-5,
        "max_position_embeddings": 16,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
    },
    "sd2": {
        "hidden_act": "gelu",
        "hidden_size": 40,
        "intermediate_size": 96,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 21,
        "num_attention_heads": 5,
        "num_hidden_layers": 3,
    },
}
_UNET: dict[str, Config] = {
    "sd1": {
        "attention_head_dim": 4,
        "block_out_channels": [32, 64],
        "cross_attention_dim": 48,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 3,
        "layers_per_block": 1,
        "norm_eps": 2e-5,
        "norm_num_groups": 8,
        "out_channels": 3,
        "sample_size": 12,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "use_linear_projection": False,
    },
    "sd2": {
        "attention_head_dim": [2, 5, 3],
        "block_out_channels": [24, 40, 48],
        "cross_attention_dim": 40,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 8,
        "layers_per_block": [2, 1, 2],
        "norm_eps": 1e-5,
        "norm_num_groups": 4,
        "out_channels": 8,
        "sample_size": 16,
        "transformer_layers_per_block": [1, 2, 1],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "use_linear_projection": True,
    },
}
_VAE: dict[str, Config] = {
    "sd1": {
        "block_out_channels": [16, 24],
        "latent_channels": 3,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 24,
        "scaling_factor": 0.31,
    },
    "sd2": {
        "block_out_channels": [8, 12, 16],
        "latent_channels": 8,
        "layers_per_block": 2,
        "norm_num_groups": 2,
        "sample_size": 64,
        "scaling_factor": 0.7,
        "shift_factor": 0.2,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}
# steps_offset is 1 in both: diffusers' pipeline sets any other to 1 in its copy, with a warning.
_SCHEDULE: dict[str, Config] = {
    "sd1": {
        "beta_end": 0.013,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.001,
        "num_train_timesteps": 800,
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "timestep_spacing": "leading",
    },
    "sd2": {
        "beta_end": 0.011,
        "beta_schedule": "linear",
        "beta_start": 0.0007,
        "num_train_timesteps": 900,
        "prediction_type": "v_prediction",
        "steps_offset": 1,
        "timestep_spacing": "trailing",
    },
}

# What tests/conftest.py's `v_artifact` is made with.
VELOCITY: dict[str, Any] = {
    "kind": "sd2",
    "unet": {  # one level less than usual: an export's time goes with the layers
        "attention_head_dim": [2, 3],
        "block_out_channels": [24, 48],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "layers_per_block": 1,
        "transformer_layers_per_block": [1, 2],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    },
    "vae": {"layers_per_block": 1, "shift_factor": None},
}

# A UNet that sees mask and masked latents beside x; four channels, as diffusers' pipeline wants its latents.
INPAINTING: dict[str, Any] = {"unet": {"in_channels": 9, "out_channels": 4}, "vae": {"latent_channels": 4}}


def make_checkpoint(
    folder: Path,
    *,
    kind: str = "sd1",
    seed: int = 0,
    prediction_type: str | None = None,
    scheduler: str = "DDIMScheduler",
    dtype: torch.dtype = torch.float16,
    text: Config | None = None,
    unet: Config | None = None,
    vae: Config | None = None,
    schedule: Config | None = None,
) -> Path:
    """Writes a whole checkpoint into `folder` (made if it is not there) and returns `folder`. Well under a second.

    `kind` "sd1" (tiny: 24x24 pixels, factor 2, 3 latent channels, 16 tokens, epsilon, its own latentd.json) or "sd2"
    (linear projections, a list of heads, uneven widths, 64x64 pixels, factor 4, 8 latent channels, 21 tokens,
    v_prediction). `prediction_type` and `scheduler` (a diffusers class name) replace those of the kind; `text`,
    `unet`, `vae` and `schedule` replace single keys of its configs.
    """
    vocabulary = _vocabulary()
    marks = {"vocab_size": len(vocabulary), "bos_token_id": vocabulary[_START], "eos_token_id": vocabulary[_END]}
    pad = _END if kind == "sd1" else "!"
    text_config = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "pad_token_id": vocabulary[pad],
        **marks,
        **_TEXT[kind],
        **(text or {}),
    }
    schedule_config = {"clip_sample": False, "set_alpha_to_one": False, **_SCHEDULE[kind], **(schedule or {})}
    if prediction_type is not None:
        schedule_config["prediction_type"] = prediction_type
    _write(folder / "model_index.json", _index(scheduler))
    _write(folder / "text_encoder/config.json", text_config)
    _write(folder / "unet/config.json", _diffusers("UNet2DConditionModel", _UNET[kind], unet))
    _write(folder / "vae/config.json", _diffusers("AutoencoderKL", _vae_blocks(_VAE[kind] | (vae or {})), None))
    _write(folder / "scheduler/scheduler_config.json", _diffusers(scheduler, schedule_config, None))
    if kind == "sd1":
        _write(folder / "latentd.json", {"steps": 4, "guidance": 3.0, "sampler": "ddim"})
    _write_tokenizer(folder / "tokenizer", vocabulary, pad, text_config["max_position_embeddings"])
    _write_weights(folder, seed, dtype)
    return folder


def _write_weights(folder: Path, seed: int, dtype: torch.dtype) -> None:
    spec = read_spec(folder)
    text = init_random(ClipText(spec.text), seed)
    unet = init_random(Unet(spec.unet), seed + 1)
    decoder, encoder = init_random(VaeDecoder(spec.vae), seed + 2), init_random(VaeEncoder(spec.vae), seed + 3)
    for path, weights in (
        ("text_encoder/model.safetensors", text.state_dict()),
        ("unet/diffusion_pytorch_model.safetensors", unet.state_dict()),
        ("vae/diffusion_pytorch_model.safetensors", decoder.state_dict() | encoder.state_dict()),
    ):
        save_file({k: v.to(dtype) for k, v in weights.items()}, folder / path, metadata={"format": "pt"})


def _diffusers(name: str, values: Config, changes: Config | None) -> Config:
    return {"_class_name": name, "_diffusers_version": "0.42.1", **values, **(changes or {})}


def _vae_blocks(values: Config) -> Config:
    blocks = len(values["block_out_channels"])
    types = {"down_block_types": ["DownEncoderBlock2D"] * blocks, "up_block_types": ["UpDecoderBlock2D"] * blocks}
    return {"in_channels": 3, "out_channels": 3, **types, **values}


def _index(scheduler: str) -> Config:
    absent = ("feature_extractor", "image_encoder", "safety_checker")
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "requires_safety_checker": False,
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **{name: [None, None] for name in absent},
    }


def _vocabulary() -> dict[str, int]:
    """Byte pairs (Sennrich et al. 2016) as CLIP numbers them: bytes, bytes that end a word, merges, two marks."""
    # GPT-2's printable name for each byte: its own character, or the next unused one from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = [*names, *(f"{name}</w>" for name in names), *(merge.replace(" ", "") for merge in _MERGES), _START, _END]
    return {word: number for number, word in enumerate(words)}


def _write_tokenizer(folder: Path, vocabulary: dict[str, int], pad: str, tokens: int) -> None:
    marks = {"bos_token": _START, "eos_token": _END, "pad_token": pad, "unk_token": _END}
    _write(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *_MERGES, "")), encoding="utf-8")
    _write(folder / "special_tokens_map.json", marks)
    own = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokens, "do_lower_case": True, "errors": "replace"}
    _write(folder / "tokenizer_config.json", own | marks)


def _write(path: Path, values: Config) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
