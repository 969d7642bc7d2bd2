"""Starts a kernel from Python."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: object) -> None:
    """Start `grid` programs on the current device and stream; `options` are constants by name, num_warps and the like.

    Tensors of another device than the current one are the caller's mistake: Triton does not look.
    """
    kernel[grid](*arguments, **options)


def power_of_two(n: int) -> int:
    """Return the next power of two from `n` on: 77 to 128, 64 to 64, 1 and less to 1."""
    return 1 << max(n - 1, 0).bit_length()


def arch_of(x: Tensor) -> int:
    """Return the architecture that a kernel on `x` runs on: 90 is sm_90, which the interpreter stands for."""
    return _arch(x.device.index) if x.is_cuda else 90


@functools.cache
def _arch(device: int) -> int:
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
