"""A folder of SDXL's full size, whose weights take no place: files of holes behind whole headers.

The tensors are those that diffusers' and transformers' own classes have for the published configs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.random_checkpoint import write_small_files
from pipeline.checkpoint.parts import SECOND, STEMS


def make_full_size(folder: Path, model: str) -> Path:
    """Write the folder of an SDXL of graphs/configs.json. Its 7 GB of float16 weights are zeros."""
    write_small_files(folder, model)
    for part, stem in STEMS.items():
        _holes(folder / part / f"{stem}.safetensors", _net(part, _config(folder, part)))
    _holes(folder / SECOND / f"{STEMS['text_encoder']}.safetensors", _net(SECOND, _config(folder, SECOND)))
    return folder


def _config(folder: Path, part: str) -> dict[str, Any]:
    return json.loads((folder / part / "config.json").read_bytes())


def _net(part: str, config: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        if part == "unet":
            return UNet2DConditionModel(**config)
        if part == "vae":
            return AutoencoderKL(**config)
        kind = CLIPTextModelWithProjection if part == SECOND else CLIPTextModel
        return kind(CLIPTextConfig(**config))


def _holes(path: Path, net: nn.Module) -> None:
    header, at = dict[str, Any](), 0
    for name, tensor in net.named_parameters():
        end = at + 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        os.truncate(file.fileno(), 8 + len(text) + at)
