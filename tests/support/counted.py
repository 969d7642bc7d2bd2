"""Plain kernels that count their calls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from engines.cuda.kernels import Kernels, plain_kernels


class Counted:
    """Plain kernels that count their calls and refuse what Triton's would."""

    def __init__(self, heads: range = range(8, 161, 8)) -> None:
        self.calls: dict[str, int] = {}
        plain = plain_kernels()
        names = ("attention", "group_norm_silu", "layer_norm", "geglu", "geglu_linear")
        self.kernels: Kernels = replace(plain, heads=heads, **{n: self._counting(n, getattr(plain, n)) for n in names})

    def _counting(self, name: str, kernel: Any) -> Any:
        def counted(x: Tensor, *rest: Any, **options: Any) -> Tensor:
            self.calls[name] = self.calls.get(name, 0) + 1
            getattr(self, f"_check_{name}", _check_rows)(x, *rest, **options)
            return kernel(x, *rest, **options)

        return counted

    @staticmethod
    def _check_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool, out: Tensor | None = None) -> None:
        for x in (q, k, v, q if out is None else out):
            assert x.stride(2) == 1 and x.stride(1) % 8 == 0 and x.data_ptr() % 16 == 0

    @staticmethod
    def _check_group_norm_silu(x: Tensor, weight: Tensor, *rest: Any, shift: Tensor | None, silu: bool) -> None:
        assert x.is_contiguous(memory_format=torch.channels_last) and weight.data_ptr() % 16 == 0
        assert shift is None or (shift.stride(1) == 1 and shift.shape == (len(x), x.shape[1]))


def _check_rows(x: Tensor, *rest: Any, **options: Any) -> None:
    x.view(-1, x.shape[-1])
