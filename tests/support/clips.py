"""Small CLIP folders with random weights, as transformers itself saves them: an image encoder, and a judge."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from model.random import init_random
from pipeline.arrays import F32, Pixels
from pipeline.networks import ClipSpec, TextSpec, VisionSpec
from tests.support.checkpoints import make_checkpoint

# The judge's text tower has the shape of make_checkpoint's "sd1", so that it needs no graph beside that one.
JUDGE = ClipSpec(
    VisionSpec(30, 6, width=40, hidden=56, layers=2, heads=5, activation="quick_gelu", eps=2e-5, projection=20),
    TextSpec(533, 16, width=48, hidden=80, layers=2, heads=3, activation="quick_gelu", eps=3e-5),
)
ENCODER = ClipSpec(
    VisionSpec(28, 7, width=32, hidden=72, layers=3, heads=4, activation="gelu", eps=1e-5, projection=24)
)


def _vision(spec: VisionSpec) -> dict[str, Any]:
    return {
        "image_size": spec.side,
        "patch_size": spec.patch,
        "hidden_size": spec.width,
        "intermediate_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "hidden_act": spec.activation,
        "layer_norm_eps": spec.eps,
        "projection_dim": spec.projection,
    }


def _text(spec: TextSpec) -> dict[str, Any]:
    return {
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.tokens,
        "hidden_size": spec.width,
        "intermediate_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "hidden_act": spec.activation,
        "layer_norm_eps": spec.eps,
        "bos_token_id": spec.vocab_size - 2,
        "eos_token_id": spec.vocab_size - 1,
        "pad_token_id": spec.vocab_size - 1,
    }


def make_encoder(folder: Path, seed: int = 20, spec: ClipSpec = ENCODER) -> Path:
    """Writes an image encoder into `folder`, and returns `folder`."""
    net = CLIPVisionModelWithProjection(CLIPVisionConfig(**_vision(spec.vision)))
    init_random(net, seed).save_pretrained(folder)
    return folder


def make_judge(folder: Path, seed: int = 30) -> Path:
    """Writes a judge into `folder`, with the tokenizer of make_checkpoint's models, and returns `folder`."""
    text = JUDGE.text
    assert text is not None
    config = CLIPConfig(
        text_config=_text(text), vision_config=_vision(JUDGE.vision), projection_dim=JUDGE.vision.projection
    )
    net = init_random(CLIPModel(config), seed)
    net.logit_scale.fill_(2.6592)  # what transformers begins with; a trained one has 4.6
    net.save_pretrained(folder)
    side = JUDGE.vision.side
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder
    )
    tokenizer = make_checkpoint(folder / "whole") / "tokenizer"
    for file in tokenizer.iterdir():
        shutil.copy(file, folder / file.name)
    shutil.rmtree(folder / "whole")
    return folder


def pixels_of(height: int, width: int) -> Pixels:
    """Noise, the same for the same sides."""
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def sight_of(pixels: Pixels, side: int, **switches: Any) -> F32:
    """What transformers' own processor makes of a picture."""
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return CLIPImageProcessorPil(**{**size, **switches})(Image.fromarray(pixels), return_tensors="np")["pixel_values"][
        0
    ]
