"""Residuals that a matrix product adds: for that a transformer's biases move, once, at load.

A library's product takes either a bias [out] or a whole matrix onto which it adds; a bias and a residual are a product
and a pass over its result, which reads it, reads the residual and writes the sum. So the stream of residuals is held
without the biases that its layers add. What it lacks is a vector known at load: each norm adds the sum so far before it
normalises, and proj_out, which is linear, has its image in its own bias: W (h + b) + c = W h + (W b + c).

That bias moves too, since proj_out adds to a residual as well, the picture that the transformer was given. Not behind,
where whatever follows would lack it, but ahead: into the last bias of the resnet that made the picture. The
transformer's own norm subtracts it.

The layers' own behind rather than ahead (all of them in proj_in's bias at once, which would spare the image): a stream
grows from layer to layer. Ahead, its first numbers carry the sum of all biases to come, and the first norm subtracts it
from what was rounded with it; behind, a number lacks only what it has.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.blocks import Resnet
from model.transformer import SpatialTransformer

# Of each layer, in order: the norm that reads the stream, and the linear layer whose result is added to it.
_BRANCHES = (("norm1", "attn1.to_out.0"), ("norm2", "attn2.to_out.0"), ("norm3", "ff.net.2"))


class Onto(nn.Linear):
    """A linear layer without a bias whose residual nobody reads after it: the sum may take its place."""

    def __init__(self, product: nn.Linear | nn.Conv2d) -> None:
        """Take the weight of `product`: a linear layer, or a 1x1 convolution, which computes the same on tokens."""
        weight = product.weight
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight.flatten(1), requires_grad=weight.requires_grad)

    def onto(self, x: Tensor, residual: Tensor) -> Tensor:
        """Add the product of x [.., in] to `residual` [.., out] in place, rounded once, and return `residual`.

        It is done in place, because torch's addmm into a result of its own first copies what it adds to there
        (pytorch/pytorch#191706): as many bytes as the addition. RuntimeError where the rows of `residual` are not one
        stride apart.
        """
        residual.view(-1, self.out_features).addmm_(x.flatten(0, -2), self.weight.t())
        return residual


class ShiftedNorm(nn.LayerNorm):
    """A layer norm that first adds what the stream lacks: `shift` [channels]."""

    shift: Tensor

    def __init__(self, norm: nn.LayerNorm, shift: Tensor) -> None:
        super().__init__(list(norm.normalized_shape), norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("shift", shift)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input + self.shift)


class ShiftedGroupNorm(nn.GroupNorm):
    """A group norm that first takes away the biases that the picture has early: `shift` [channels] is minus these."""

    shift: Tensor

    def __init__(self, norm: nn.GroupNorm, shift: Tensor) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("shift", shift)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input + self.shift[:, None, None])


@torch.no_grad()
def fold_residuals(resnet: Resnet, transformer: SpatialTransformer) -> None:
    """Take the biases from a transformer's linear layers that are added to something; the network computes the same.

    That holds with any Ops. `resnet`, whose picture the transformer alone is given, must have moved its own biases
    (engines.cuda.ops.fold_biases).
    """
    project = transformer.proj_out
    if isinstance(project, Onto):
        return  # it has been folded
    assert project.bias is not None
    lacking: Tensor | None = None  # [channels], float64
    for layer in transformer.transformer_blocks:
        for before, last in _BRANCHES:
            norm, linear = layer.get_submodule(before), layer.get_submodule(last)
            assert isinstance(norm, nn.LayerNorm) and isinstance(linear, nn.Linear)
            if lacking is not None:
                layer.set_submodule(before, ShiftedNorm(norm, lacking.to(norm.weight.dtype)))
            if linear.bias is not None:
                lacking = linear.bias.double() + (0 if lacking is None else lacking)
            layer.set_submodule(last, Onto(linear))
    ahead = project.bias.double()
    if lacking is not None:
        ahead = ahead + project.weight.flatten(1).double() @ lacking
    # The shortcut's, which its product adds; else that of the last convolution, which has its pass anyway.
    bias = (resnet.conv_shortcut or resnet.conv2).bias
    assert bias is not None
    together = (bias.double() + ahead).to(bias.dtype)
    shift = bias.double() - together.double()  # of what the picture will have, rounding included
    bias.data = together
    transformer.norm = ShiftedGroupNorm(transformer.norm, shift.to(transformer.norm.weight.dtype))
    transformer.proj_out = Onto(project)
