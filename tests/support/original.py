"""A checkpoint folder as an original single file: the inverse of export/single_file, written from the other side.

It goes by diffusers' names and arithmetic on the block's number, and knows nothing of the converter's table.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.checkpoint.parts import STEMS
from tests.support.checkpoints import make_checkpoint

Weights = dict[str, Tensor]
PARTS = ("text_encoder", "unet", "vae")

# SD 1.5's and SD 2.1's topology (levels, layers, where they attend, groups, 77 tokens), narrow. Heads are theirs:
# eight, or one for each 64 channels.
TOPOLOGY = {
    "sd1": {
        "text": {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 256, "num_hidden_layers": 3},
        "unet": {"block_out_channels": [32, 64, 96, 96], "attention_head_dim": 8, "cross_attention_dim": 64},
    },
    "sd2": {
        "text": {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512, "num_hidden_layers": 3},
        "unet": {
            "block_out_channels": [64, 64, 128, 128],
            "attention_head_dim": [1, 1, 2, 2],
            "cross_attention_dim": 128,
            "transformer_layers_per_block": 1,
        },
    },
}


def make_folder(
    folder: Path,
    kind: str,
    *,
    prediction: str = "epsilon",
    dtype: torch.dtype = torch.float16,
    levels: int = 4,
    layers: int = 2,
    more: dict[str, object] | None = None,
) -> Path:
    """A checkpoint of that topology in diffusers' layout, for the published pictures' sizes.

    SD has 4 `levels` of 2 `layers`; fewer make a quicker test. `more` are keys of the UNet's config.
    """
    side = 768 if prediction == "v_prediction" else 512
    narrow = TOPOLOGY[kind]
    cut = {key: value[:levels] if isinstance(value, list) else value for key, value in narrow["unet"].items()}
    unet = {
        "down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1),
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": layers,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": side // 2 ** (levels - 1),
        "use_linear_projection": kind == "sd2",
    }
    make_checkpoint(
        folder,
        kind=kind,
        dtype=dtype,
        scheduler="DPMSolverMultistepScheduler",
        text={"vocab_size": 49408, "max_position_embeddings": 77, "layer_norm_eps": 1e-5, **narrow["text"]},
        unet=unet | cut | (more or {}),
        vae={
            "block_out_channels": [32, 32, 64, 64][-levels:],
            "latent_channels": 4,
            "layers_per_block": layers,
            "norm_num_groups": 32,
            "sample_size": side,
            "scaling_factor": 0.18215,
            "shift_factor": None,
            "use_quant_conv": True,
            "use_post_quant_conv": True,
        },
        schedule={
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "prediction_type": prediction,
        },
    )
    schedule = folder / "scheduler/scheduler_config.json"
    values = json.loads(schedule.read_bytes())
    del values["timestep_spacing"]  # the published folders have none
    schedule.write_text(json.dumps(values))
    (folder / "latentd.json").unlink(missing_ok=True)
    for part in PARTS:  # a fresh network's biases and norms are alike: make every tensor one of its own
        _stir(folder / part / f"{STEMS[part]}.safetensors")
    return folder


def _stir(path: Path) -> None:
    generator = torch.Generator().manual_seed(path.stat().st_size)
    weights = load_file(path)
    save_file(
        {name: (t + 0.02 * torch.randn(t.shape, generator=generator)).to(t.dtype) for name, t in weights.items()}, path
    )


def folder_weights(folder: Path, part: str) -> Weights:
    return load_file(folder / part / f"{STEMS[part]}.safetensors")


def original_weights(parts: dict[str, Weights], kind: str, levels: int = 4, layers: int = 2) -> Weights:
    """Everything that a published file of `kind` holds, leftovers of training included; `parts` as in a folder."""
    inner = any(name.startswith("up_blocks.0.attentions.") for name in parts["unet"])
    unet = {unet_name(name, layers, inner): tensor for name, tensor in parts["unet"].items()}
    vae = dict(_vae_tensor(name, tensor, levels) for name, tensor in parts["vae"].items())
    text = parts["text_encoder"]
    whole = {
        **{f"model.diffusion_model.{name}": tensor for name, tensor in unet.items()},
        **{f"first_stage_model.{name}": tensor for name, tensor in vae.items()},
        **(_openclip(text) if kind == "sd2" else {f"cond_stage_model.transformer.{k}": v for k, v in text.items()}),
        "alphas_cumprod": torch.ones(1000),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(1, dtype=torch.int32),
        "model_ema.diffusion_modeltime_embed0weight": torch.ones(4),
        "first_stage_model.loss.logvar": torch.zeros(1),
    }
    if kind == "sd1":
        ids = torch.arange(77)[None]
        whole["cond_stage_model.transformer.text_model.embeddings.position_ids"] = ids
    return whole


def write_original(folder: Path, kind: str, path: Path, levels: int = 4, layers: int = 2) -> Path:
    weights = original_weights({part: folder_weights(folder, part) for part in PARTS}, kind, levels, layers)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    return path


def unet_name(name: str, layers: int, inner: bool = False) -> str:
    """`inner`: the innermost block attends, which in SD it does not."""
    fixed = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    stem, ending = name.rsplit(".", 1)
    if stem in fixed:
        return f"{fixed[stem]}.{ending}"
    for ours, theirs in (
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
        ("time_emb_proj", "emb_layers.1"),
        ("conv_shortcut", "skip_connection"),
    ):
        name = re.sub(rf"(\.resnets\.\d+)\.{ours}\.", rf"\1.{theirs}.", name)
    name = name.replace("mid_block.resnets.0", "middle_block.0").replace("mid_block.resnets.1", "middle_block.2")
    name = name.replace("mid_block.attentions.0", "middle_block.1")

    def down(match: re.Match[str]) -> str:
        block, kind, layer = int(match[1]), match[2], int(match[3])
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (block + 1)}.0.op"
        return f"input_blocks.{1 + (layers + 1) * block + layer}.{0 if kind == 'resnets' else 1}"

    def up(match: re.Match[str]) -> str:
        block, kind, layer = int(match[1]), match[2], int(match[3])
        if kind == "upsamplers":  # behind the attention, where there is one
            return f"output_blocks.{(layers + 1) * block + layers}.{2 if block or inner else 1}.conv"
        return f"output_blocks.{(layers + 1) * block + layer}.{0 if kind == 'resnets' else 1}"

    name = re.sub(r"^down_blocks\.(\d+)\.(\w+)\.(\d+)(?:(?<=downsamplers\.0)\.conv)?", down, name)
    return re.sub(r"^up_blocks\.(\d+)\.(\w+)\.(\d+)(?:(?<=upsamplers\.0)\.conv)?", up, name)


def _vae_tensor(name: str, tensor: Tensor, levels: int) -> tuple[str, Tensor]:
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
    name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace(".resnets.", ".block.").replace("samplers.0.", "sample.").replace("conv_norm_out", "norm_out")
    name = name.replace("conv_shortcut", "nin_shortcut")
    if ".attentions." in name:
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("to_out.0", "proj_out")
        name = re.sub(r"\.to_([qkv])\.", r".\1.", name).replace("group_norm", "norm")
        if tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
    return name, tensor


def openclip_tower(text: Weights) -> Weights:
    """A text tower as OpenCLIP calls its parts; what it does not know keeps its name."""
    text, found = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}, dict[str, Tensor]()
    for name, tensor in text.items():
        if ".self_attn.q_proj." in name:
            tensor = torch.cat([text[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
        elif ".self_attn.k_proj." in name or ".self_attn.v_proj." in name:
            continue
        for ours, theirs in (
            ("encoder.layers.", "transformer.resblocks."),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("self_attn.", "attn."),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("final_layer_norm", "ln_final"),
            ("embeddings.token_embedding", "token_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
        ):
            name = name.replace(ours, theirs)
        found[name] = tensor
    return found


def _openclip(text: Weights) -> Weights:
    """With one more layer than the text tower has, and the heads of a whole OpenCLIP."""
    root = "cond_stage_model.model."
    found = {root + name: tensor for name, tensor in openclip_tower(text).items()}
    last = max(int(m[1]) for m in (re.search(r"resblocks\.(\d+)", name) for name in found) if m)
    more = {
        k.replace(f".{last}.", f".{last + 1}."): torch.full_like(v, 7)
        for k, v in found.items()
        if f"blocks.{last}." in k
    }
    width = found[f"{root}positional_embedding"].shape[1]
    heads = {f"{root}text_projection": torch.ones(width, width), f"{root}logit_scale": torch.tensor(4.6)}
    return found | more | heads
