"""The four networks: how each is built and loaded, what goes in and what comes out.

Everything about a graph depends on its own network's part of the spec alone, as its name does (graphs/__init__.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim

import graphs
from engines.artifact.opened import GRAPHS
from model import weights
from model.clip import ClipText
from model.unet import Unet
from model.vae import VaeDecoder, VaeMoments
from pipeline.checkpoint.weights import Weights
from pipeline.spec import Spec

_TOKENS = 7  # of an example's context; the dimension is dynamic


@dataclass(frozen=True)
class Port:
    """An input: its name, an example, and the names of its dynamic dimensions by position."""

    name: str
    example: Tensor
    dynamic: dict[int, Dim | int]


@dataclass(frozen=True)
class Network:
    name: str  # one of graphs.NETWORKS
    build: Callable[[Spec], nn.Module]
    load: Callable[[Spec, Weights], nn.Module]  # with a checkpoint's weights
    inputs: Callable[[Spec], list[Port]]
    outputs: Callable[[Spec], list[str]]

    @property
    def part(self) -> str:
        """The checkpoint's folder of its weights."""
        return graphs.part_of(self.name)

    @property
    def graph(self) -> str:
        """Where an artifact has its graph."""
        return GRAPHS[self.name]


def example(*shape: int) -> Tensor:
    """Return normally distributed numbers, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _ids(spec: Spec) -> list[Port]:
    ids = torch.arange(2 * spec.text.tokens).reshape(2, -1) % spec.text.vocab_size
    return [Port("ids", ids, {0: Dim("rows")})]


def _unet_inputs(spec: Spec) -> list[Port]:
    unet, rows = spec.unet, Dim("rows")
    unit = 2 ** (len(unet.channels) - 1)  # a side is a multiple of it: each block but the last halves it
    sample = example(2, unet.in_channels, 3 * unit, 4 * unit)
    return [
        Port("sample", sample, {0: rows, 2: unit * Dim("h"), 3: unit * Dim("w")}),
        Port("timestep", torch.tensor([999.0, 1.0]), {0: rows}),
        Port("context", example(2, _TOKENS, unet.context_width), {0: rows, 1: Dim("tokens")}),
        *([Port("guidance", torch.tensor([7.5, 1.5]), {0: rows})] if unet.guidance_width else []),
    ]


def _latents(spec: Spec) -> list[Port]:
    latents = example(2, spec.vae.latent_channels, 6, 8)
    return [Port("latents", latents, {0: Dim("rows"), 2: Dim("h"), 3: Dim("w")})]


def _pictures(spec: Spec) -> list[Port]:
    factor = spec.vae.factor
    picture = example(2, spec.vae.image_channels, 6 * factor, 8 * factor)
    return [Port("picture", picture, {0: Dim("rows"), 2: factor * Dim("h"), 3: factor * Dim("w")})]


def _contexts(spec: Spec) -> list[str]:
    return ["context", "skipped"] if spec.text.skips else ["context"]


def _outputs(*names: str) -> Callable[[Spec], list[str]]:
    return lambda _: list(names)


NETWORKS = [
    Network("text_encoder", lambda spec: ClipText(spec.text), weights.load_text, _ids, _contexts),
    Network("unet", lambda spec: Unet(spec.unet), weights.load_unet, _unet_inputs, _outputs("out")),
    Network("vae_decoder", lambda spec: VaeDecoder(spec.vae), weights.load_vae_decoder, _latents, _outputs("picture")),
    Network("vae_encoder", lambda spec: VaeMoments(spec.vae), weights.load_vae_moments, _pictures, _outputs("moments")),
]
