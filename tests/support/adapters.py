"""Small style adapters with random weights, in the layout of the published files (ip-adapter_sd15.safetensors)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.spec import Spec, read_spec
from tests.support.checkpoints import make_checkpoint
from tests.support.clips import ENCODER, make_encoder

TOKENS = 4


def adapter_tensors(spec: Spec, embedding: int = ENCODER.vision.projection, seed: int = 40) -> dict[str, torch.Tensor]:
    """Tensors for a model's UNet and an encoder's embeddings, under the published names.

    The layers are numbered here as diffusers lists them for a UNet, independently of pipeline/networks.py.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet, generator = spec.unet, torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    with torch.device("meta"):
        theirs = UNet2DConditionModel(
            block_out_channels=unet.channels,
            down_block_types=tuple("CrossAttnDownBlock2D" if cross else "DownBlock2D" for cross in unet.attention_down),
            up_block_types=tuple("CrossAttnUpBlock2D" if cross else "UpBlock2D" for cross in unet.attention_up),
            layers_per_block=unet.layers,
            transformer_layers_per_block=unet.transformer_layers,
            attention_head_dim=unet.heads,
            cross_attention_dim=unet.context_width,
            norm_num_groups=unet.groups,
        )
    width = unet.context_width
    tensors = {
        "image_proj.proj.weight": normal(TOKENS * width, embedding, scale=embedding**-0.5),
        "image_proj.proj.bias": normal(TOKENS * width, scale=0.3),
        "image_proj.norm.weight": 1 + normal(width, scale=0.1),
        "image_proj.norm.bias": normal(width, scale=0.1),
    }
    for number, name in enumerate(theirs.attn_processors):
        if name.endswith("attn2.processor"):
            out = theirs.get_submodule(name.removesuffix(".processor")).to_q.out_features
            for kind in "kv":
                tensors[f"ip_adapter.{number}.to_{kind}_ip.weight"] = normal(out, width, scale=width**-0.5)
    return tensors


def make_styled(folder: Path, **options: object) -> Path:
    """Writes a checkpoint (see make_checkpoint) with `ip_adapter/` and `image_encoder/`, and returns `folder`."""
    return add_style(make_checkpoint(folder, **options))  # type: ignore[arg-type]


def add_style(folder: Path) -> Path:
    """Writes `ip_adapter/` and `image_encoder/` into a checkpoint's folder, and returns it."""
    (folder / "ip_adapter").mkdir()
    tensors = {name: value.half() for name, value in adapter_tensors(read_spec(folder)).items()}
    save_file(tensors, folder / "ip_adapter/ip-adapter_small.safetensors")
    make_encoder(folder / "image_encoder")
    return folder
