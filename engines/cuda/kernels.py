"""The kernels that the CUDA path calls, as one value: Triton's on a GPU, plain torch where there is none."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engines.cuda import plain


@dataclass(frozen=True)
class Kernels:
    """The kernels, by name. Their signatures and their meaning are those of engines/cuda/plain.py."""

    attention: Callable[..., Tensor]
    group_norm_silu: Callable[..., Tensor]
    layer_norm: Callable[..., Tensor]
    geglu: Callable[..., Tensor]
    geglu_linear: Callable[..., Tensor]
    interleave: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
    guided_step: Callable[[Any, Tensor], object]
    to_uint8: Callable[[Tensor], tuple[Tensor, Tensor]]
    heads: Collection[int]  # widths of a head that `attention` takes


def plain_kernels() -> Kernels:
    return Kernels(
        plain.attention,
        plain.group_norm_silu,
        plain.layer_norm,
        plain.geglu,
        plain.geglu_linear,
        plain.interleave,
        plain.guided_step,
        plain.to_uint8,
        range(8, 161, 8),
    )


def triton_kernels() -> Kernels:
    """Return Triton's kernels. Errors: ModuleNotFoundError where triton is not installed."""
    from kernels.attention import PARTS, attention
    from kernels.geglu import geglu, geglu_linear, interleave
    from kernels.group_norm_silu import group_norm_silu
    from kernels.guided_step import guided_step
    from kernels.layer_norm import layer_norm
    from kernels.to_uint8 import to_uint8

    return Kernels(
        attention, group_norm_silu, layer_norm, geglu, geglu_linear, interleave, guided_step, to_uint8, PARTS
    )
