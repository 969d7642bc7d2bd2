"""The seam between what a network computes and how it is computed.

A network says which operation comes next and with which weights; an `Ops` carries it out. The methods are as
coarse as the fusions that pay on a GPU: normalisation with what surrounds it, several projections of one input,
attention from projected tokens to merged heads. So kernels enter by overriding methods of `PlainOps`, and the
networks stay as they are.

Every method gets the module that owns the weights, not the weights, so that an implementation can keep what it
prepared (packed weights, for example) per module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Ops(Protocol):
    """The operations that the networks use. Tokens are [n, t, c], pictures [n, c, h, w] in either memory format."""

    def linear(self, x: Tensor, linear: nn.Linear, residual: Tensor | None = None) -> Tensor:
        """Apply a linear layer to x [.., in] and add `residual` [.., out]: [.., out]."""
        ...

    def linears(self, x: Tensor, linears: Sequence[nn.Linear]) -> list[Tensor]:
        """Apply several linear layers to one input, and return the results in order.

        They are self-attention's q, k and v; every layer's k and v of the text; every resnet's projection of the time.
        One matrix product can do them all.
        """
        ...

    def conv(self, x: Tensor, conv: nn.Conv2d, residual: Tensor | None = None) -> Tensor:
        """Convolve x [n, in, h, w] and add `residual` of the result's shape: [n, out, h', w']."""
        ...

    def upsample_conv(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        """Double x [n, in, h, w] by its nearest neighbours and convolve it: [n, out, 2h, 2w]."""
        ...

    def group_norm(self, x: Tensor, norm: nn.GroupNorm, *, shift: Tensor | None = None, silu: bool = False) -> Tensor:
        """Add `shift` [n, c] to every position of x [n, c, h, w], normalise it, and apply SiLU where `silu` says so."""
        ...

    def concat(self, x: Tensor, skip: Tensor) -> Tensor:
        """Put the channels of one picture after the other's: [n, c, h, w] and [n, d, h, w] -> [n, c + d, h, w]."""
        ...

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Normalise the last dimension."""
        ...

    def geglu(self, x: Tensor, linear: nn.Linear) -> Tensor:
        """Project x [.., in], and multiply the first half by GELU of the second: [.., out / 2] (Shazeer 2020)."""
        ...

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
        """Compute softmax(q k^T / sqrt(d)) v over `heads` heads: q [n, t, heads d], k, v [n, s, heads d] -> as q."""
        ...

    def shared_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, copies: int) -> Tensor:
        """Compute `attention` where `copies` rows in turn share their query.

        q [n, t, heads d], k and v [n copies, s, heads d] -> [n copies, t, heads d].
        """
        ...


class PlainOps:
    """The reference: each operation is the one that torch has."""

    def linear(self, x: Tensor, linear: nn.Linear, residual: Tensor | None = None) -> Tensor:
        y = linear(x)
        return y if residual is None else residual + y

    def linears(self, x: Tensor, linears: Sequence[nn.Linear]) -> list[Tensor]:
        return [linear(x) for linear in linears]

    def conv(self, x: Tensor, conv: nn.Conv2d, residual: Tensor | None = None) -> Tensor:
        y = conv(x)
        return y if residual is None else residual + y

    def upsample_conv(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

    def group_norm(self, x: Tensor, norm: nn.GroupNorm, *, shift: Tensor | None = None, silu: bool = False) -> Tensor:
        y = norm(x if shift is None else x + shift[:, :, None, None])
        return F.silu(y) if silu else y

    def concat(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat((x, skip), dim=1)

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return norm(x)

    def geglu(self, x: Tensor, linear: nn.Linear) -> Tensor:
        value, gate = linear(x).chunk(2, dim=-1)
        return value * F.gelu(gate)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [n, heads, t, d]
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)

    def shared_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, copies: int) -> Tensor:
        return self.attention(spread(q, copies), k, v, heads)


def spread(x: Tensor, copies: int) -> Tensor:
    """Copy each row of x [n, ..] `copies` times in turn, to new memory: [n copies, ..]; for one copy return x."""
    return x if copies == 1 else torch.stack((x,) * copies, dim=1).flatten(0, 1)


PLAIN = PlainOps()
