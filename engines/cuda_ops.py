"""The networks' operations with our kernels: channels_last throughout, projections of one input in one product."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engines.cuda_folds import Onto, ShiftedGroupNorm, ShiftedNorm, fold_residuals
from engines.cuda_kernels import Kernels
from model.blocks import Resnet
from model.ops import PLAIN
from model.transformer import to_picture, to_tokens
from model.unet import Unet

_ALIGNED = 8  # numbers of two bytes in 16: rows of other widths are slow in a matrix product


@dataclass(frozen=True)
class _Packed:
    """Several linear layers as one."""

    weight: Tensor  # [sum of outs, in]
    bias: Tensor | None
    widths: list[int]


class KernelOps:
    """See model.ops.Ops. `fused_geglu`: projection and gate in one kernel, instead of a library's product and ours.

    `columns`: the 3x3 convolutions, as (channels in, channels out, height, width), that are a product of the picture's
    columns and the weight, cut along its depth (kernels/split_product.py), instead of a library's convolution. None
    until a GPU has measured where that pays (benchmarks/gpu/columns.py).
    """

    def __init__(
        self,
        kernels: Kernels,
        *,
        fused_geglu: bool = False,
        columns: Container[tuple[int, int, int, int]] = (),
    ) -> None:
        self._kernels, self._fused_geglu, self._columns = kernels, fused_geglu, columns
        self._packed: dict[tuple[nn.Linear, ...], _Packed] = {}
        self._interleaved: dict[nn.Linear, tuple[Tensor, Tensor | None]] = {}

    def linear(self, x: Tensor, linear: nn.Linear, residual: Tensor | None = None) -> Tensor:
        if residual is not None and isinstance(linear, Onto):
            return linear.onto(x, residual.contiguous())  # of channels_last pictures the tokens are
        y = F.linear(x, linear.weight, linear.bias)
        return y if residual is None else y.add_(residual)

    def linears(self, x: Tensor, linears: Sequence[nn.Linear]) -> list[Tensor]:
        """Views of one product, [.., sum of outs]."""
        key = tuple(linears)
        if key not in self._packed:
            self._packed[key] = _pack(key)
        packed = self._packed[key]
        return list(F.linear(x, packed.weight, packed.bias).split(packed.widths, dim=-1))

    def conv(self, x: Tensor, conv: nn.Conv2d, residual: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if self._takes_columns(x, conv):
            return self._of_columns(self._kernels.columns(x), x, conv, residual)
        if _is_product(conv):
            y = F.linear(to_tokens(x), conv.weight.flatten(1), conv.bias)
            y = to_picture(y, like=x)
        else:
            y = conv(x)
        return y if residual is None else y.add_(residual)

    def norm_conv(
        self,
        x: Tensor,
        norm: nn.GroupNorm,
        conv: nn.Conv2d,
        *,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        if not self._takes_columns(x, conv):
            return self.conv(self.group_norm(x, norm, shift=shift, silu=True), conv, residual)
        x = x.contiguous(memory_format=torch.channels_last)
        columns = self._kernels.group_norm_silu(
            x, norm.weight, norm.bias, norm.num_groups, norm.eps, shift=shift, silu=True, columns=True
        )
        return self._of_columns(columns, x, conv, residual)

    def _takes_columns(self, x: Tensor, conv: nn.Conv2d) -> bool:
        same_size = conv.kernel_size == (3, 3) and conv.stride == conv.padding == conv.dilation == (1, 1)
        shape = (conv.in_channels, conv.out_channels, x.shape[2], x.shape[3])
        return same_size and conv.groups == 1 and shape in self._columns

    def _of_columns(self, columns: Tensor, x: Tensor, conv: nn.Conv2d, residual: Tensor | None) -> Tensor:
        """columns [n, h w, 9 in] of a picture of x's size -> [n, out, h, w], channels_last."""
        weight = conv.weight.permute(0, 2, 3, 1).flatten(1)  # [out, (ky, kx, in)]: a view where it is channels_last
        if residual is not None:
            residual = to_tokens(residual.contiguous(memory_format=torch.channels_last))
        return to_picture(self._kernels.split_product(columns, weight, conv.bias, residual), like=x)

    def upsample_conv(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"), conv)

    def group_norm(self, x: Tensor, norm: nn.GroupNorm, *, shift: Tensor | None = None, silu: bool = False) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if isinstance(norm, ShiftedGroupNorm):
            assert shift is None
            shift = norm.shift.expand(len(x), -1)
        return self._kernels.group_norm_silu(
            x, norm.weight, norm.bias, norm.num_groups, norm.eps, shift=shift, silu=silu
        )

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        shift = norm.shift if isinstance(norm, ShiftedNorm) else None
        return self._kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, shift=shift)

    def geglu(self, x: Tensor, linear: nn.Linear) -> Tensor:
        if not self._fused_geglu:
            return self._kernels.geglu(F.linear(x, linear.weight, linear.bias))
        if linear not in self._interleaved:
            self._interleaved[linear] = self._kernels.interleave(linear.weight, linear.bias)
        return self._kernels.geglu_linear(x, *self._interleaved[linear])

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
        if q.shape[-1] // heads in self._kernels.heads:
            return self._kernels.attention(q, k, v, heads, causal=causal)
        if heads == 1 and not causal:
            return _one_head(q, k, v)
        return PLAIN.attention(q, k, v, heads, causal)

    def shared_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, copies: int) -> Tensor:
        """The query is not written out: a row of it is a view of stride 0, of several each one's first texts are
        attended to, then their second ones. At 32 rows of SD 1.5 at 512x512 that spares a pass of 126 MB.
        """
        if copies == 1:
            return self.attention(q, k, v, heads)
        if q.shape[-1] // heads not in self._kernels.heads:
            return PLAIN.shared_attention(q, k, v, heads, copies)
        if len(q) == 1:
            return self._kernels.attention(q.expand(copies, -1, -1), k, v, heads, causal=False)
        out = q.new_empty(len(k), *q.shape[1:])
        for own in range(copies):
            self._kernels.attention(q, k[own::copies], v[own::copies], heads, causal=False, out=out[own::copies])
        return out


def fold_biases(net: nn.Module, *, residuals: bool = True) -> None:
    """Move biases to where they cost nothing, once and for all; the network computes the same.

    Before `KernelOps` has run it: what that packs are copies.

    torch adds a convolution's bias in a pass of its own over the result, but a matrix product's within the product. In
    a resnet the first convolution's goes into the time's projection, which is added to the same channels next; the
    second's into the shortcut's, where there is one, which is added last. In a transformer they make room for the
    residuals (see engines.cuda_folds), unless told not to.
    """
    with torch.no_grad():
        for resnet in net.modules():
            if not isinstance(resnet, Resnet):
                continue
            for conv, product in (
                (resnet.conv1, resnet.time_emb_proj),
                (resnet.conv2, resnet.conv_shortcut),
            ):
                if product is not None and conv.bias is not None:
                    assert product.bias is not None
                    both = product.bias.float() + conv.bias.float()
                    product.bias.data = both.to(product.bias.dtype)
                    conv.bias = None
    if residuals and isinstance(net, Unet):
        for resnet, transformer in net.attended():
            fold_residuals(resnet, transformer)


def sum_in_float32(to_the_end: bool = True) -> None:
    """Matrix products, whatever they are made of, keep float32 sums to the end, or as torch has it; in this process.

    torch lets cuBLAS add the parts of a product that it cuts along its depth in half precision, by default: bits are
    lost where rows are few, and a part above 65504 is infinite (docs.pytorch.org/docs/stable/notes/cuda.html).
    """
    matmul = torch.backends.cuda.matmul
    matmul.allow_fp16_reduced_precision_reduction = not to_the_end
    matmul.allow_bf16_reduced_precision_reduction = not to_the_end


def _one_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A head too wide for a kernel's registers (the VAE's has 512): two products, and a softmax in float32.

    The scores are stored: 34 MB in float16 for 64 x 64 positions. They are scaled before they are rounded, so that
    float16 holds them.
    """
    empty = torch.empty((), dtype=q.dtype, device=q.device)  # beta = 0: it is not read
    scores = torch.baddbmm(empty, q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)  # [n, t, s]
    return torch.bmm(torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype), v)


def _is_product(conv: nn.Conv2d) -> bool:
    """1x1: a matrix product of positions, for which a library has more and better tiles than for convolutions."""
    return (
        conv.kernel_size == (1, 1)
        and conv.stride == (1, 1)
        and conv.in_channels % _ALIGNED == conv.out_channels % _ALIGNED == 0
    )


def _pack(linears: tuple[nn.Linear, ...]) -> _Packed:
    """One weight for all of them; each module's own becomes a view of it, so that they are held once."""
    widths = [linear.out_features for linear in linears]
    with torch.inference_mode(False), torch.no_grad():
        weight = torch.cat([linear.weight for linear in linears])
        for linear, part in zip(linears, weight.split(widths), strict=True):
            linear.weight.data = part
        if all(linear.bias is None for linear in linears):
            return _Packed(weight, None, widths)
        biases = [weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears]
        return _Packed(weight, torch.cat(biases), widths)
