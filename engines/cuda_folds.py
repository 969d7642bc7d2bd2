"""Residuals that a matrix product adds: for that the biases of a transformer's layers move, once, at load.

A library's product takes either a bias [out] or a whole matrix onto which it adds; a bias and a residual are a product
and a pass over its result, which reads it, reads the residual and writes the sum. So the stream of residuals is held
without the biases that its layers add. What it lacks is a vector known at load: each norm adds the sum so far before it
normalises, and proj_out, which is linear, has its image in its own bias: W (h + b) + c = W h + (W b + c).

Behind rather than ahead (all of them in proj_in's bias at once, which would spare the image): a stream grows from layer
to layer. Ahead, its first numbers carry the sum of all biases to come, and the first norm subtracts it from what was
rounded with it; behind, a number lacks only what it has.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.transformer import SpatialTransformer

# Of each layer, in order: the norm that reads the stream, and the linear layer whose result is added to it.
_BRANCHES = (("norm1", "attn1.to_out.0"), ("norm2", "attn2.to_out.0"), ("norm3", "ff.net.2"))


class Onto(nn.Linear):
    """A linear layer without a bias whose residual nobody reads after it: the sum may take its place."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight

    def onto(self, x: Tensor, residual: Tensor) -> Tensor:
        """x [.., in], residual [.., out] -> `residual`, which is overwritten with the sum, rounded once.

        In place, because torch's addmm into a result of its own first copies what it adds to there
        (pytorch/pytorch#191706): as many bytes as the addition. RuntimeError where the rows of `residual` are not one
        stride apart.
        """
        residual.view(-1, self.out_features).addmm_(x.flatten(0, -2), self.weight.t())
        return residual


class ShiftedNorm(nn.LayerNorm):
    """A layer norm of the stream and what it lacks: `shift` [channels]."""

    shift: Tensor

    def __init__(self, norm: nn.LayerNorm, shift: Tensor) -> None:
        super().__init__(list(norm.normalized_shape), norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.shift)


@torch.no_grad()
def fold_residuals(transformer: SpatialTransformer) -> None:
    """Its linear layers that are added to the stream lose their biases; the network computes the same, by any Ops."""
    lacking: Tensor | None = None  # [channels], float64
    for layer in transformer.transformer_blocks:
        for before, last in _BRANCHES:
            norm, linear = layer.get_submodule(before), layer.get_submodule(last)
            if isinstance(linear, Onto):
                return  # it has been folded
            assert isinstance(norm, nn.LayerNorm) and isinstance(linear, nn.Linear)
            if lacking is not None:
                layer.set_submodule(before, ShiftedNorm(norm, lacking.to(norm.weight.dtype)))
            if linear.bias is not None:
                lacking = linear.bias.double() + (0 if lacking is None else lacking)
            layer.set_submodule(last, Onto(linear))
    if lacking is not None:
        project = transformer.proj_out
        assert project.bias is not None
        image = project.weight.flatten(1).double() @ lacking
        project.bias.data = (project.bias.double() + image).to(project.bias.dtype)
