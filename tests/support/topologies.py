"""Stable Diffusion 1.5's and 2.1's topology at a fifth of the width: every block, head and layer, random weights.

The first has its UNet in shards and its VAE under old names, the second its weights as they come.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.support.checkpoints import make_checkpoint

WIDE = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
UNET = {
    "block_out_channels": [64, 128, 256, 256],
    "down_block_types": WIDE,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 8,
    "transformer_layers_per_block": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
VAE = {
    "block_out_channels": [32, 64, 96, 96],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "sample_size": 64,
}
TOPOLOGIES: dict[str, dict[str, Any]] = {
    "sd1": {
        "kind": "sd1",
        "unet": {**UNET, "attention_head_dim": 8, "cross_attention_dim": 160, "use_linear_projection": False},
        "text": {"hidden_size": 160, "intermediate_size": 640, "num_attention_heads": 2, "num_hidden_layers": 3},
    },
    "sd2": {
        "kind": "sd2",
        "unet": {**UNET, "attention_head_dim": [1, 2, 4, 4], "cross_attention_dim": 192, "use_linear_projection": True},
        "text": {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3, "num_hidden_layers": 4},
    },
}


def make_topology(kind: str, folder: Path) -> Path:
    """A checkpoint of a key of TOPOLOGIES, written into `folder`."""
    make_checkpoint(folder, vae=VAE, **TOPOLOGIES[kind])
    if kind == "sd1":
        _in_two_shards(folder / "unet" / "diffusion_pytorch_model.safetensors")
        _under_old_names(folder / "vae" / "diffusion_pytorch_model.safetensors")
    return folder


def _in_two_shards(path: Path) -> None:
    tensors = load_file(path)
    names = sorted(tensors)
    shards = {f"{path.stem}-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for shard, own in shards.items():
        save_file({name: tensors[name] for name in own}, path.with_name(shard))
    index = {"metadata": {}, "weight_map": {name: shard for shard, own in shards.items() for name in own}}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    path.unlink()


def _under_old_names(path: Path) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in load_file(path).items():
        for new, was in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{was}.")
        renamed[name] = tensor
    assert any("proj_attn" in name for name in renamed)
    save_file(renamed, path)
