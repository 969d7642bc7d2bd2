"""The networks: how each is built and loaded, what goes in and what comes out.

Everything about a graph depends on its own network's part of the spec alone, as its name does (graphs/__init__.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

import graphs
from engines.artifact.opened import GRAPHS
from graphs import ports
from graphs.ports import Port
from model import weights
from model.clip import ClipVision
from model.unet import Unet
from model.vae import VaeDecoder, VaeMoments
from pipeline.checkpoint.weights import Weights
from pipeline.networks import ClipSpec
from pipeline.spec import Spec

_TOKENS = 7  # of an example's context; the dimension is dynamic


@dataclass(frozen=True)
class Example:
    """An input with a value, which tracing takes, and its dynamic dimensions by position."""

    name: str
    value: Tensor
    dynamic: dict[int, Dim | int]


@dataclass(frozen=True)
class Network:
    name: str  # one of graphs.NETWORKS or TOWERS
    build: Callable[[Any], nn.Module]
    load: Callable[[Any, Weights], nn.Module]  # with a checkpoint's weights

    def inputs(self, spec: Spec | ClipSpec) -> list[Example]:
        """Return two rows of everything that goes in."""
        sides, dims = _sides(self.name, spec)
        return [
            Example(
                port.name,
                _value(port, spec, sides),
                {i: dims[side] for i, side in enumerate(port.shape) if isinstance(side, str)},
            )
            for port in ports.inputs(self.name, spec)
        ]

    @property
    def part(self) -> str:
        """Return the checkpoint's part, and folder, that has the network's weights."""
        return graphs.part_of(self.name)

    @property
    def graph(self) -> str:
        """Return the path of the network's graph in an artifact."""
        return GRAPHS[self.name]


# Two numbers differ, so that no graph takes one row for the other.
_CHOSEN = {
    "timestep": torch.tensor([999.0, 1.0]),
    "guidance": torch.tensor([7.5, 1.5]),
    "style_weight": torch.tensor([0.4, 1.0]),
    "sizes": torch.tensor([[512.0, 640.0, 0.0, 8.0, 1024.0, 768.0], [384.0, 256.0, 16.0, 0.0, 512.0, 512.0]]),
}


def example(*shape: int) -> Tensor:
    """Return normally distributed numbers, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _value(port: Port, spec: Spec | ClipSpec, sides: Mapping[str, int]) -> Tensor:
    if port.name == "ids":
        assert spec.text is not None
        shape = port.sized(sides)
        return torch.arange(math.prod(shape)).reshape(shape) % spec.text.vocab_size
    return _CHOSEN[port.name] if port.name in _CHOSEN else example(*port.sized(sides))


def _sides(network: str, spec: Spec | ClipSpec) -> tuple[dict[str, int], dict[str, Dim | int]]:
    """Return the sides of an example, and what they are to the tracer: dimensions, or multiples of one."""
    if isinstance(spec, ClipSpec):
        return {"rows": 2}, {"rows": Dim("rows")}
    # Each block of the UNet but the last halves the latents, and the VAE's encoder all that its factor takes.
    unit, factor = 2 ** (len(spec.unet.channels) - 1), spec.vae.factor
    h, w = (3 * unit, 4 * unit) if network == "unet" else (6, 8)
    sides = {"rows": 2, "tokens": _TOKENS, "h": h, "w": w, "height": 6 * factor, "width": 8 * factor}
    dims: dict[str, Dim | int] = {name: Dim(name) for name in ("rows", "tokens", "h", "w")}
    if network == "unet":
        dims |= {"h": unit * Dim("h"), "w": unit * Dim("w")}
    return sides, dims | {"height": factor * Dim("h"), "width": factor * Dim("w")}


NETWORKS = [
    Network("text_encoder", weights.text_network, weights.load_text),
    Network("unet", lambda spec: Unet(spec.unet), weights.load_unet),
    Network("vae_decoder", lambda spec: VaeDecoder(spec.vae), weights.load_vae_decoder),
    Network("vae_encoder", lambda spec: VaeMoments(spec.vae), weights.load_vae_moments),
]
VISION = Network("vision_tower", lambda spec: ClipVision(spec.vision), weights.load_vision)
BY_NAME = {network.name: network for network in (*NETWORKS, VISION)}
