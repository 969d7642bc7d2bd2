"""The moving average of a network's weights, which draws better than any one step's (Ho et al. 2020, appendix B)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average:
    """Holds the averages of a network's parameters, by their names."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in net.named_parameters()}

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Move towards the weights after `step` steps; early ones count less, as they are far from the last."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in net.named_parameters():
            self.weights[name].lerp_(parameter, 1 - decay)

    @contextlib.contextmanager
    def within(self, net: nn.Module) -> Iterator[None]:
        """Let the network have the averages for a while."""
        parameters = dict(net.named_parameters())
        kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._copy(parameters, self.weights)
        try:
            yield
        finally:
            self._copy(parameters, kept)

    @staticmethod
    @torch.no_grad()
    def _copy(parameters: dict[str, nn.Parameter], weights: dict[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
