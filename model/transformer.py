"""The spatial transformer (Rombach et al. 2022, section 3.3): where latents attend to themselves and to the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from model.ops import Ops, spread


class Text(NamedTuple):
    """The keys and values that n rows attend to: `copies` rows of each in turn a row, each [n copies, s, width]."""

    k: Tensor
    v: Tensor
    copies: int
    style: tuple[Tensor, Tensor] | None = None  # those of a picture's tokens (IP-Adapter), attended to beside the text


class SpatialTransformer(nn.Module):
    """Positions of a picture as tokens, through `layers` transformer layers, and back."""

    def __init__(
        self,
        width: int,
        context_width: int,
        *,
        heads: int,
        layers: int,
        linear: bool,
        groups: int,
        ops: Ops,
        styled: bool = False,
    ) -> None:
        super().__init__()
        self.ops = ops
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        # The same product either way; a checkpoint stores it as a 1x1 convolution (SD 1) or a linear layer (SD 2).
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(
            _Layer(width, context_width, heads, ops, styled=styled) for _ in range(layers)
        )
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, next_text: Callable[[], Text]) -> Tensor:
        """x [n, width, h, w] -> the same, of as many rows as the text has. `next_text`: called once a layer."""
        y = self.ops.group_norm(x, self.norm)
        if isinstance(self.proj_in, nn.Conv2d):
            y = to_tokens(self.ops.conv(y, self.proj_in))
        else:
            y = self.ops.linear(to_tokens(y), self.proj_in)
        copies = 1
        for layer in self.transformer_blocks:
            text = next_text()
            y, copies = layer(y, text), copies * text.copies
        residual = x if copies == 1 else None
        if isinstance(self.proj_out, nn.Conv2d):
            y = self.ops.conv(to_picture(y, like=x), self.proj_out, residual)
        else:
            y = to_picture(self.ops.linear(y, self.proj_out, None if residual is None else to_tokens(x)), like=x)
        if residual is None:  # each row of x onto several, which are nobody else's: spread, it would be written first
            y.unflatten(0, (-1, copies)).add_(x[:, None])
        return y


def to_tokens(x: Tensor) -> Tensor:
    """[n, c, h, w] -> [n, h w, c]; no copy where `x` is channels_last."""
    return x.flatten(2).transpose(1, 2)


def to_picture(x: Tensor, like: Tensor) -> Tensor:
    """[n, h w, c] -> [n, c, h, w], with the sides of `like`; no copy, and channels_last in memory.

    The sides first: of one row, the other order leaves a stride of c for n, which torch takes for the other memory
    format, so that what follows (a concatenation, a doubling) would be laid out anew.
    """
    return x.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


class _Layer(nn.Module):
    """Self-attention, attention to the text, and a gated MLP, each on a normalised input and added to it."""

    def __init__(self, width: int, context_width: int, heads: int, ops: Ops, *, styled: bool) -> None:
        super().__init__()
        self.ops = ops
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads, ops)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, context_width, heads, ops, styled=styled)
        self.norm3 = nn.LayerNorm(width)
        self.ff = _FeedForward(width, ops)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """x [n, t, width] -> [n copies, t, width]."""
        ops = self.ops
        x = self.attn1.to_itself(ops.layer_norm(x, self.norm1), residual=x)
        # Of twins the query is computed once. The residual is the one tensor that is spread: onto it a product may be
        # added (engines/cuda/folds.py). At 512x512 that reads 2.6 MB twice and writes 5.2 a picture, in float16.
        x = self.attn2.to_text(ops.layer_norm(x, self.norm2), text, residual=spread(x, text.copies))
        return self.ff(ops.layer_norm(x, self.norm3), residual=x)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of tokens [n, t, width]."""

    def __init__(
        self, width: int, context_width: int, heads: int, ops: Ops, *, bias: bool = False, styled: bool = False
    ) -> None:
        super().__init__()
        self.ops, self.heads = ops, heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context_width, width, bias=bias)
        self.to_v = nn.Linear(context_width, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])  # a list only for the checkpoint's names
        if styled:
            self.to_k_ip = nn.Linear(context_width, width, bias=False)
            self.to_v_ip = nn.Linear(context_width, width, bias=False)

    @property
    def of_style(self) -> tuple[nn.Linear, nn.Linear]:
        """Return what projects a picture's tokens to keys and values, where there is a style adapter."""
        return self.to_k_ip, self.to_v_ip

    def to_itself(self, x: Tensor, residual: Tensor) -> Tensor:
        """Let every token attend to every token, and add `residual`: [n, t, width] -> [n, t, width]."""
        q, k, v = self.ops.linears(x, (self.to_q, self.to_k, self.to_v))
        return self._out(self.ops.attention(q, k, v, self.heads), residual)

    def to_text(self, x: Tensor, text: Text, residual: Tensor) -> Tensor:
        """Attend to the text, projected beforehand as it is the same at every step: the shape of `residual`.

        To a picture's tokens the same queries attend by themselves, and the results add up (Ye et al. 2023, eq. 5).
        """
        q = self.ops.linear(x, self.to_q)
        seen = self.ops.shared_attention(q, text.k, text.v, self.heads, text.copies)
        if text.style is not None:
            seen = seen + self.ops.shared_attention(q, *text.style, self.heads, text.copies)
        return self._out(seen, residual)

    def _out(self, x: Tensor, residual: Tensor) -> Tensor:
        (out,) = self.to_out
        assert isinstance(out, nn.Linear)
        return self.ops.linear(x, out, residual)


class _FeedForward(nn.Module):
    def __init__(self, width: int, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        gate, out = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)
        # The checkpoint's names: net.0.proj and net.2; net.1 was dropout.
        self.net = nn.ModuleList([nn.ModuleDict({"proj": gate}), nn.Identity(), out])

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        gate, out = self.net[0].get_submodule("proj"), self.net[2]
        assert isinstance(gate, nn.Linear) and isinstance(out, nn.Linear)
        return self.ops.linear(self.ops.geglu(x, gate), out, residual)  # [n, t, 4 width] in between
