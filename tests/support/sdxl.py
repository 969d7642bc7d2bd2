"""SDXL's topology, narrow and with random weights, written by diffusers and transformers themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from model.random import init_random
from pipeline.clip_vocabulary import END, SIZE, tokenizer_files
from tests.support.original import _vae_tensor, openclip_tower, unet_name

TOKENS, LEVELS, LAYERS = 77, 3, 1
TEXTS: tuple[dict[str, Any], ...] = (
    {
        "hidden_act": "quick_gelu",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 1,
        "num_hidden_layers": 3,
        "pad_token_id": SIZE - 1,
        "eos_token_id": SIZE - 1,
    },
    {
        "hidden_act": "gelu",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
        "projection_dim": 128,
        "pad_token_id": 1,
        "eos_token_id": 2,  # as it is published: the highest number of a text is meant
    },
)
UNET: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
    "attention_head_dim": [1, 1, 2],
    "block_out_channels": [64, 64, 128],
    "cross_attention_dim": 192,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "layers_per_block": LAYERS,
    "projection_class_embeddings_input_dim": 128 + 6 * 32,
    "sample_size": 16,
    "transformer_layers_per_block": [1, 2, 3],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "block_out_channels": [32, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * LEVELS,
    "up_block_types": ["UpDecoderBlock2D"] * LEVELS,
    "force_upcast": True,
    "latent_channels": 4,
    "layers_per_block": LAYERS,
    "sample_size": 64,
    "scaling_factor": 0.13025,
}
SCHEDULE: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def write_configs(folder: Path) -> None:
    """Only the configs of such a folder, for whoever wants its spec."""
    for name, values in _configs().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))


def _configs() -> dict[str, dict[str, Any]]:
    classes = ("CLIPTextModel", "CLIPTextModelWithProjection")
    shared = {"vocab_size": SIZE, "max_position_embeddings": TOKENS}
    texts = [{**shared, **text, "architectures": [name]} for name, text in zip(classes, TEXTS, strict=True)]
    return {
        "model_index.json": {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True},
        "text_encoder/config.json": texts[0],
        "text_encoder_2/config.json": texts[1],
        "unet/config.json": UNET,
        "vae/config.json": VAE,
        "scheduler/scheduler_config.json": {"_class_name": "EulerDiscreteScheduler", **SCHEDULE},
    }


def make_sdxl(folder: Path, *, unet: dict[str, Any] | None = None, zeros: bool = True, seed: int = 0) -> Path:
    """A folder with SDXL's parts; `unet` replaces keys of its config, `zeros` is force_zeros_for_empty_prompt."""
    shared = {"vocab_size": SIZE, "max_position_embeddings": TOKENS, "bos_token_id": 0}
    first, second = (CLIPTextConfig(**{**shared, **text}) for text in TEXTS)
    nets: list[Any] = [
        CLIPTextModel(first),
        CLIPTextModelWithProjection(second),
        UNet2DConditionModel(**UNET | (unet or {})),
        AutoencoderKL(**VAE),
    ]
    for number, net in enumerate(nets):
        init_random(net, seed + number)
        for name, parameter in net.named_parameters():
            if name.endswith("position_embedding.weight"):
                parameter.data.mul_(0.1)
    for name, pad in (("tokenizer", END), ("tokenizer_2", "!")):
        (folder / name).mkdir(parents=True)
        for file, data in tokenizer_files(pad=pad, tokens=TOKENS).items():
            (folder / name / file).write_bytes(data)
    scheduler: Any = EulerDiscreteScheduler(**SCHEDULE)
    pipe = StableDiffusionXLPipeline(
        vae=nets[3].half(),
        text_encoder=nets[0].half(),
        text_encoder_2=nets[1].half(),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        unet=nets[2].half(),
        scheduler=scheduler,
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    # As published; this class does not know them, and others that are made of its config do.
    change(folder, "scheduler/scheduler_config.json", clip_sample=False, set_alpha_to_one=False)
    return folder


def write_sdxl_file(folder: Path, path: Path) -> Path:
    """The same weights under the original names, from the other side: diffusers' names and arithmetic alone."""

    def stored(part: str, stem: str) -> dict[str, Tensor]:
        return load_file(folder / part / f"{stem}.safetensors")

    unet, vae = (stored(part, "diffusion_pytorch_model") for part in ("unet", "vae"))
    first, second = (stored(part, "model") for part in ("text_encoder", "text_encoder_2"))
    whole = {f"model.diffusion_model.{_unet(name)}": tensor for name, tensor in unet.items()}
    for name, tensor in vae.items():
        theirs, tensor = _vae_tensor(name, tensor, LEVELS)
        whole[f"first_stage_model.{theirs}"] = tensor
    for name, tensor in first.items():
        name = name if name.startswith("text_model.") else f"text_model.{name}"
        whole[f"conditioner.embedders.0.transformer.{name}"] = tensor
    whole["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
    whole |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in _openclip(second).items()}
    whole["denoiser.sigmas"] = torch.ones(1000)
    save_file({name: tensor.contiguous() for name, tensor in whole.items()}, path)
    return path


def _unet(name: str) -> str:
    for ours, theirs in (("linear_1", "0.0"), ("linear_2", "0.2")):
        name = name.replace(f"add_embedding.{ours}", f"label_emb.{theirs}")
    if name.startswith("label_emb."):
        return name
    # The outermost block is the one that does not attend: its doubling stands where an attention would.
    name = unet_name(name, LAYERS, inner=True)
    return name


def _openclip(text: dict[str, Tensor]) -> dict[str, Tensor]:
    found = openclip_tower(text) | {"logit_scale": torch.tensor(4.6)}
    return found | {"text_projection": found.pop("text_projection.weight").T}


def change(folder: Path, file: str, **keys: Any) -> None:
    """Replace keys of a config; None takes one away."""
    path = folder / file
    values = json.loads(path.read_bytes()) | keys
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
