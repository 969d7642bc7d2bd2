"""How weights move: all by AdamW, or matrices by Muon (Jordan et al. 2024) and what is no matrix by AdamW.

On two Zen 4 cores the autoencoder of small-things.yaml stood at 22.5 dB after 300 steps of 16 pictures with Muon, at
18.5 with AdamW, for 3% more time a step; the denoiser's step of 32 pictures takes 29% more
(benchmarks/results/training-cpu.csv).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from training.ops import multiplies_bfloat16
from training.recipe import PhaseRecipe

# Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks": a quintic that is steep at 0 and, five
# times over, takes singular values to 0.7 .. 1.2.
_QUINTIC, _TIMES = (3.4445, -4.7750, 2.0315), 5
# What AdamW moves a weight by is about this share of the rate (Liu et al. 2025, "Muon is scalable for LLM training",
# 2.2), so that one rate serves both.
_ADAMW = 0.2
_LEAST = 16  # channels on either side: with fewer, as where a picture enters and leaves, AdamW is as good


class Muon(torch.optim.Optimizer):
    """Moves each matrix by its averaged gradient with all singular values made about equal.

    torch.optim.Muon takes no convolution, and always multiplies in bfloat16, which takes 48 times as long as float32 on
    a processor that has no instructions for it (ops.multiplies_bfloat16). This one also stacks equal shapes.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], rate: float, decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": rate, "decay": decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            stacks: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    averaged = self._averaged(weight, group["momentum"])
                    stacks.setdefault((averaged.shape[0], averaged.shape[1]), []).append((weight, averaged))
            for shape, pairs in stacks.items():
                moves = orthogonal(torch.stack([averaged for _, averaged in pairs]))
                length = group["lr"] * _ADAMW * max(shape) ** 0.5
                for (weight, _), move in zip(pairs, moves, strict=True):
                    weight.mul_(1 - group["lr"] * group["decay"]).add_(move.view_as(weight), alpha=-length)

    def _averaged(self, weight: nn.Parameter, momentum: float) -> Tensor:
        """Take a gradient into its moving average, and return [out, in] a step of Nesterov's ahead of that."""
        assert weight.grad is not None
        kept: dict[str, Any] = self.state[weight]
        if not kept:
            kept["momentum"] = torch.zeros_like(weight)
        kept["momentum"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(kept["momentum"], momentum).flatten(1)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices [n, a, b] -> those of the same singular vectors whose singular values are about 0.7 to 1.2.

    What is nearly nothing stays so: a matrix of zeros, and one of a norm far below 1e-7.
    """
    first, third, fifth = _QUINTIC
    x = matrices.to(torch.bfloat16 if multiplies_bfloat16(matrices.device) else torch.float32)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).contiguous()
    for _ in range(_TIMES):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=third, alpha=fifth), x, beta=first)
    return (x.mT if tall else x).to(matrices.dtype)


def optimizers_of(net: nn.Module, recipe: PhaseRecipe) -> tuple[torch.optim.Optimizer, ...]:
    """Return what moves the weights of a phase, as its recipe says: AdamW, and Muon where it has a matrix to move."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    tables = {id(module.weight) for module in net.modules() if isinstance(module, nn.Embedding)}
    matrices = [
        p for p in trained if recipe.optimizer == "muon" and p.ndim >= 2 and min(p.shape[:2]) >= _LEAST
        and id(p) not in tables
    ]  # fmt: skip
    theirs = {id(matrix) for matrix in matrices}
    rest = [parameter for parameter in trained if id(parameter) not in theirs]
    adamw = torch.optim.AdamW(rest, lr=recipe.rate, weight_decay=recipe.decay, betas=(0.9, 0.99), fused=True)
    return (adamw, Muon(matrices, recipe.rate, recipe.decay)) if matrices else (adamw,)
