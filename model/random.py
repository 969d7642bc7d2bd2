"""Random weights, for benchmarks and tests that need the shape of a network and no training."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

_Net = TypeVar("_Net", bound=nn.Module)


def init_random(net: _Net, seed: int) -> _Net:
    """Fill `net` in place, on its device and in its type, so that unit inputs give outputs of order one.

    Matrices keep the variance of what they multiply (He et al. 2015); norms and biases are near their neutral
    values but not at them, so that a forgotten one shows. Never zeros: they run faster than data on a GPU.
    """
    generators: dict[torch.device, torch.Generator] = {}
    with torch.no_grad():
        for parameter in net.parameters():
            device = parameter.device
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed(seed)
            parameter.normal_(generator=generators[device])
            if parameter.ndim > 1:
                parameter.mul_(parameter[0].numel() ** -0.5)
        for module in net.modules():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if isinstance(module, nn.GroupNorm | nn.LayerNorm) and isinstance(weight, torch.Tensor):
                weight.mul_(0.1).add_(1.0)
            if isinstance(module, nn.Embedding):
                module.weight.mul_(module.embedding_dim**0.5)
            if isinstance(bias, torch.Tensor):
                bias.mul_(0.1)
    return net.requires_grad_(False)
