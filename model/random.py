"""Random weights, for benchmarks and tests that need the shape of a network and no training."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

_Net = TypeVar("_Net", bound=nn.Module)


_SHIFT = 257  # numbers between two windows: no network is so wide


def init_windows(net: _Net, seed: int) -> _Net:
    """Give `net`, whose parameters have no memory yet, ones that are windows of few random numbers, like init_random's.

    Parameters of one kind and fan-in lie over each other, each a little further on. So no two are equal, and one in
    another's place shows, while SDXL's UNet of 10.3 GB has 0.5. Nobody may write to them.
    """
    kinds: dict[tuple[str, int], list[tuple[str, torch.Tensor]]] = {}
    for name, parameter in net.named_parameters():
        path, _, leaf = name.rpartition(".")
        module = net.get_submodule(path)
        kind, fan_in = "vector", 1
        if parameter.ndim > 1:
            kind, fan_in = "embedding" if isinstance(module, nn.Embedding) else "matrix", parameter[0].numel()
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm) and leaf == "weight":
            kind = "scale"
        kinds.setdefault((kind, fan_in), []).append((name, parameter))
    generator, state = torch.Generator().manual_seed(seed), dict[str, torch.Tensor]()
    for (kind, fan_in), alike in kinds.items():
        most = max(parameter.numel() for _, parameter in alike)
        numbers = torch.randn(most + _SHIFT * len(alike), generator=generator)
        if kind in ("vector", "scale"):
            numbers.mul_(0.1).add_(float(kind == "scale"))
        elif kind == "matrix":
            numbers.mul_(fan_in**-0.5)
        for place, (name, parameter) in enumerate(alike):
            window = numbers[place * _SHIFT : place * _SHIFT + parameter.numel()]
            state[name] = window.view(parameter.shape)
    net.load_state_dict(state, strict=True, assign=True)
    return net.requires_grad_(False)


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
