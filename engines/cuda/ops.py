"""The networks' operations with our kernels: channels_last throughout, projections of one input in one product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from engines.cuda.choices import CHOSEN, Choices, way
from engines.cuda.folds import Onto, ShiftedGroupNorm, ShiftedNorm, fold_residuals
from engines.cuda.kernels import Kernels
from model.blocks import Resnet
from model.ops import PLAIN, spread
from model.transformer import to_picture, to_tokens
from model.unet import Unet

_LIBRARIES = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
_ALIGNED = 8  # numbers of two bytes in 16: rows of other widths are slow in a matrix product


@dataclass(frozen=True)
class _Packed:
    """Several linear layers, packed as one."""

    weight: Tensor  # [sum of outs, in]
    bias: Tensor | None
    widths: list[int]


class KernelOps:
    """See model.ops.Ops."""

    def __init__(self, kernels: Kernels, choices: Choices = CHOSEN) -> None:
        self._kernels, self._choices = kernels, choices
        self._packed: dict[tuple[nn.Linear, ...], _Packed] = {}
        self._interleaved: dict[nn.Linear, tuple[Tensor, Tensor | None]] = {}

    def linear(self, x: Tensor, linear: nn.Linear, residual: Tensor | None = None) -> Tensor:
        if residual is not None and isinstance(linear, Onto):
            return linear.onto(x, residual.contiguous())  # of channels_last pictures the tokens are
        y = F.linear(x, linear.weight, linear.bias)
        return y if residual is None else y.add_(residual)

    def linears(self, x: Tensor, linears: Sequence[nn.Linear]) -> list[Tensor]:
        """Compute one product [.., sum of outs] for all of them, and return views of it."""
        key = tuple(linears)
        if key not in self._packed:
            self._packed[key] = _pack(key)
        packed = self._packed[key]
        return list(F.linear(x, packed.weight, packed.bias).split(packed.widths, dim=-1))

    def conv(self, x: Tensor, conv: nn.Conv2d, residual: Tensor | None = None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        if self._is_product(x, conv):
            y = F.linear(to_tokens(x), conv.weight.flatten(1), conv.bias)
            y = to_picture(y, like=x)
        else:
            y = conv(x)
        return y if residual is None else y.add_(residual)

    def concat(self, x: Tensor, skip: Tensor) -> Tensor:
        """Join x and skip along the channels, as tokens.

        For pictures in channels_last torch.cat never takes the kernel that moves 16 bytes at a time, but one that
        writes number by number (ATen/native/cuda/Shape.cu), 31 million in a step of two rows of SD 1.5.
        """
        return to_picture(torch.cat((to_tokens(x), to_tokens(skip)), dim=-1), like=x)

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
        if way(self._choices.geglu, linear.in_features, linear.out_features) == "apart":
            return self._kernels.geglu(F.linear(x, linear.weight, linear.bias))
        if linear not in self._interleaved:
            self._interleaved[linear] = self._kernels.interleave(linear.weight, linear.bias)
        return self._kernels.geglu_linear(x, *self._interleaved[linear])

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
        if (chosen := self._attention_of(q, k, heads)) in _LIBRARIES:
            with sdpa_kernel(_LIBRARIES[chosen]):
                return PLAIN.attention(q, k, v, heads, causal)
        if chosen == "ours":
            return self._kernels.attention(q, k, v, heads, causal=causal)
        if heads == 1 and not causal:
            return _one_head(q, k, v)
        return PLAIN.attention(q, k, v, heads, causal)

    def shared_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, copies: int) -> Tensor:
        """Attend to `copies` texts a row without writing the query out as often.

        Of a single row the query is a view of stride 0; of several, the first text of each is attended to, then the
        second of each. At 32 rows of SD 1.5 at 512x512 that spares a pass of 126 MB.
        """
        if copies == 1:
            return self.attention(q, k, v, heads)
        if self._attention_of(q, k, heads) != "ours":
            return self.attention(spread(q, copies), k, v, heads)
        if len(q) == 1:
            return self._kernels.attention(q.expand(copies, -1, -1), k, v, heads, causal=False)
        out = q.new_empty(len(k), *q.shape[1:])
        for copy in range(copies):
            self._kernels.attention(q, k[copy::copies], v[copy::copies], heads, causal=False, out=out[copy::copies])
        return out

    def _attention_of(self, q: Tensor, k: Tensor, heads: int) -> str:
        """Return who attends: the table's choice, or "other" where that is ours and ours does not take the width."""
        width = q.shape[-1] // heads
        chosen = way(self._choices.attention, width, q.shape[1], k.shape[1])
        return "other" if chosen == "ours" and width not in self._kernels.heads else chosen

    def _is_product(self, x: Tensor, conv: nn.Conv2d) -> bool:
        """Return whether a convolution is 1x1, and chosen to be computed as a matrix product of positions."""
        shape = (conv.kernel_size[0], conv.in_channels, conv.out_channels, *x.shape[2:])
        return (
            conv.kernel_size == (1, 1)
            and conv.stride == (1, 1)
            and conv.in_channels % _ALIGNED == conv.out_channels % _ALIGNED == 0
            and way(self._choices.convolution, *shape) == "product"
        )


def fold_biases(net: nn.Module, *, residuals: bool = True) -> None:
    """Move biases to where they cost nothing, once and for all; the network computes the same.

    Call it before `KernelOps` has run the network: `KernelOps` packs copies of the weights.

    torch adds a convolution's bias in a pass of its own over the result, but a matrix product's within the product. In
    a resnet the first convolution's goes into the time's projection, which is added to the same channels next; the
    second's into the shortcut's, where there is one, which is added last. In a transformer they make way for the
    residuals (see engines.cuda.folds), unless `residuals` is False.
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
    """Let matrix products of every type keep float32 sums to the end, or as torch has it; in all of this process.

    torch lets cuBLAS add the parts of a product that it cuts along its depth in half precision, by default: bits are
    lost where rows are few, and a part above 65504 is infinite (docs.pytorch.org/docs/stable/notes/cuda.html).
    """
    matmul = torch.backends.cuda.matmul
    matmul.allow_fp16_reduced_precision_reduction = not to_the_end
    matmul.allow_bf16_reduced_precision_reduction = not to_the_end


def _one_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with a head too wide for a kernel's registers (the VAE's has 512): two products, and a softmax in float32.

    The scores are stored: 34 MB in float16 for 64 x 64 positions. They are scaled before they are rounded, so that
    float16 holds them.
    """
    empty = torch.empty((), dtype=q.dtype, device=q.device)  # beta = 0: it is not read
    scores = torch.baddbmm(empty, q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)  # [n, t, s]
    return torch.bmm(torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype), v)


def _pack(linears: tuple[nn.Linear, ...]) -> _Packed:
    """Pack all of them into one weight; each module's weight becomes a view of it, so that they are held once."""
    widths = [linear.out_features for linear in linears]
    with torch.inference_mode(False), torch.no_grad():
        weight = torch.cat([linear.weight for linear in linears])
        for linear, part in zip(linears, weight.split(widths), strict=True):
            linear.weight.data = part
        if all(linear.bias is None for linear in linears):
            return _Packed(weight, None, widths)
        biases = [weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias for linear in linears]
        return _Packed(weight, torch.cat(biases), widths)
