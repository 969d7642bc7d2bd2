"""The four networks of a checkpoint: how each is loaded, what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from engines.artifact import GRAPHS
from export.graph import Port
from model import weights
from pipeline.spec import Spec


@dataclass(frozen=True)
class Network:
    name: str  # a key of GRAPHS
    part: str  # the checkpoint's folder of its weights
    load: Callable[[Spec, Path], nn.Module]
    inputs: Callable[[Spec], list[Port]]
    outputs: Callable[[Spec], list[str]]

    @property
    def graph(self) -> str:
        return GRAPHS[self.name]


def example(*shape: int) -> torch.Tensor:
    """Normally distributed, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _ids(spec: Spec) -> list[Port]:
    ids = torch.arange(2 * spec.text.tokens).reshape(2, -1) % spec.text.vocab_size
    return [Port("ids", ids, {0: Dim("rows")})]


def _latents(spec: Spec) -> list[Port]:
    unit = _unit(spec)
    latents = example(2, spec.vae.latent_channels, 3 * unit, 4 * unit)
    return [Port("latents", latents, {0: Dim("rows"), 2: Dim("h"), 3: Dim("w")})]


def _pictures(spec: Spec) -> list[Port]:
    side, factor = spec.size_multiple, spec.vae.factor
    picture = example(2, spec.vae.image_channels, 3 * side, 4 * side)
    return [Port("picture", picture, {0: Dim("rows"), 2: factor * Dim("h"), 3: factor * Dim("w")})]


def _unet_inputs(spec: Spec) -> list[Port]:
    unit, rows = _unit(spec), Dim("rows")
    sample = example(2, spec.unet.in_channels, 3 * unit, 4 * unit)
    return [
        Port("sample", sample, {0: rows, 2: unit * Dim("h"), 3: unit * Dim("w")}),
        Port("timestep", torch.tensor([999.0, 1.0]), {0: rows}),
        Port("context", example(2, spec.text.tokens, spec.text.width), {0: rows, 1: Dim("tokens")}),
        *([Port("guidance", torch.tensor([7.5, 1.5]), {0: rows})] if spec.unet.guidance_width else []),
    ]


def _unit(spec: Spec) -> int:
    """A latent's sides are multiples of it: each block of the UNet but the last halves them."""
    return spec.size_multiple // spec.vae.factor


def _contexts(spec: Spec) -> list[str]:
    return ["context", "skipped"] if spec.text.skips else ["context"]


NETWORKS = [
    Network("text_encoder", "text_encoder", weights.load_text, _ids, _contexts),
    Network("unet", "unet", weights.load_unet, _unet_inputs, lambda _: ["out"]),
    Network("vae_decoder", "vae", weights.load_vae_decoder, _latents, lambda _: ["picture"]),
    Network("vae_encoder", "vae", weights.load_vae_encoder, _pictures, lambda _: ["latents"]),
]
