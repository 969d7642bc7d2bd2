"""The networks of a recipe, with their first weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from model.clip import ClipText, ClipVision
from model.unet import Unet
from model.vae import VaeDecoder, VaeEncoder
from pipeline.networks import TextSpec, UnetSpec, VaeSpec, VisionSpec
from pipeline.schedule import ScheduleSpec
from training.draws import numbers
from training.ops import TRAINING
from training.recipe import Recipe

_EPS, _ACTIVATION = 1e-5, "quick_gelu"
_Net = TypeVar("_Net", bound=nn.Module)

# Stable Diffusion's (Rombach et al. 2022), with velocity for what is predicted (Salimans & Ho 2022, appendix D).
SCHEDULE = ScheduleSpec(
    train_steps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction="v_prediction",
    spacing="leading", steps_offset=1, set_alpha_to_one=False,
)  # fmt: skip


def text_spec(recipe: Recipe) -> TextSpec:
    text = recipe.text
    hidden = 4 * text.width
    return TextSpec(recipe.data.vocabulary, text.tokens, text.width, hidden, text.layers, text.heads, _ACTIVATION, _EPS)


def vision_spec(recipe: Recipe) -> VisionSpec:
    vision = recipe.vision
    return VisionSpec(
        side=recipe.data.side, patch=vision.patch, width=vision.width, hidden=4 * vision.width, layers=vision.layers,
        heads=vision.heads, activation=_ACTIVATION, eps=_EPS, projection=vision.projection,
    )  # fmt: skip


def vae_spec(recipe: Recipe) -> VaeSpec:
    vae = recipe.vae
    return VaeSpec(
        image_channels=3, latent_channels=vae.latent_channels, channels=vae.channels, layers=vae.layers,
        groups=vae.groups, scaling_factor=1.0, shift_factor=0.0, quant_conv=True, post_quant_conv=True,
        mid_attention=True,
    )  # fmt: skip


def unet_spec(recipe: Recipe, style_tokens: int = 0) -> UnetSpec:
    unet, blocks = recipe.unet, len(recipe.unet.channels)
    return UnetSpec(
        in_channels=recipe.vae.latent_channels, out_channels=recipe.vae.latent_channels,
        sample_size=recipe.data.side // 2 ** (len(recipe.vae.channels) - 1), channels=unet.channels,
        layers=(unet.layers,) * blocks, attention_down=unet.attention, attention_up=unet.attention[::-1],
        heads=(unet.heads,) * blocks, transformer_layers=(1,) * blocks, context_width=recipe.text.width,
        linear_projection=False, groups=unet.groups, eps=_EPS, flip_sin_to_cos=True, freq_shift=0.0,
        style_tokens=style_tokens,
    )  # fmt: skip


def seeded(recipe: Recipe, name: str) -> None:
    """Seed torch's own generator, from which layers take their first weights."""
    torch.manual_seed(int(numbers(recipe.seed, f"first weights of {name}", 0).integers(2**62)))


def new_text(recipe: Recipe) -> ClipText:
    seeded(recipe, "text")
    return _as_clip(ClipText(text_spec(recipe), TRAINING))


def new_vision(recipe: Recipe) -> ClipVision:
    seeded(recipe, "vision")
    net = _as_clip(ClipVision(vision_spec(recipe), TRAINING))
    nn.init.normal_(net.vision_model.embeddings.class_embedding, std=recipe.vision.width**-0.5)
    return net


def _as_clip(net: _Net) -> _Net:
    """Begin as CLIP did (its source, `initialize_parameters`): torch's embeddings are fifty times too large."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.01 if "position" in name else 0.02)
    return net


def new_vae(recipe: Recipe) -> tuple[VaeEncoder, VaeDecoder]:
    seeded(recipe, "vae")
    return VaeEncoder(vae_spec(recipe), TRAINING), VaeDecoder(vae_spec(recipe), TRAINING)


def new_unet(recipe: Recipe) -> Unet:
    seeded(recipe, "unet")
    net = Unet(unet_spec(recipe), TRAINING)
    nn.init.zeros_(net.conv_out.weight)  # the first prediction is nothing, rather than noise (Ho et al. 2020, source)
    return net
