"""The kernels that the CUDA path calls, as one value: Triton's on a GPU, plain torch where there is none."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from engines import cuda_plain


@dataclass(frozen=True)
class Kernels:
    """Signatures and meaning are those of engines/cuda_plain.py."""

    attention: Callable[..., Tensor]
    group_norm_silu: Callable[..., Tensor]
    layer_norm: Callable[..., Tensor]
    geglu: Callable[..., Tensor]
    geglu_linear: Callable[..., Tensor]
    interleave: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
    guided_step: Callable[[Any, Tensor], object]
    to_uint8: Callable[[Tensor], tuple[Tensor, Tensor]]
    heads: Collection[int]  # widths of a head that `attention` takes
    columns: Callable[[Tensor], Tensor]
    split_product: Callable[..., Tensor]


def plain_kernels() -> Kernels:
    plain = cuda_plain
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
        columns=plain.columns,
        split_product=plain.split_product,
    )


def triton_kernels(*, dependent: bool = False) -> Kernels:
    """`dependent`: each kernel is set up while the one before it runs (kernels/dependent.py), on sm_90 and later.

    Off until a GPU has measured it (gpu-check, section `forms`). Errors: ModuleNotFoundError where triton is not
    installed.
    """
    from kernels.attention import PARTS, attention
    from kernels.columns import columns
    from kernels.dependent import dependent_launches
    from kernels.geglu import geglu, geglu_linear, interleave
    from kernels.group_norm_silu import group_norm_silu
    from kernels.guided_step import guided_step
    from kernels.layer_norm import layer_norm
    from kernels.split_product import split_product
    from kernels.to_uint8 import to_uint8

    def launching(kernel: Callable[..., Any]) -> Callable[..., Any]:
        return dependent_launches()(kernel) if dependent else kernel

    return Kernels(
        launching(attention),
        launching(group_norm_silu),
        launching(layer_norm),
        launching(geglu),
        launching(geglu_linear),
        interleave,
        launching(guided_step),
        launching(to_uint8),
        PARTS,
        columns=launching(columns),
        split_product=launching(split_product),
    )
