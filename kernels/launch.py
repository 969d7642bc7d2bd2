"""Starting a kernel from Python."""

from __future__ import annotations

from typing import Any


def launch(kernel: Any, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
    """`grid` programs on the current device and stream; `options` are constants by name, num_warps and the like.

    Tensors of another device than the current one are the caller's mistake: Triton does not look.
    """
    kernel[grid](*arguments, **options)


def power_of_two(n: int) -> int:
    """The next one from `n` on: 77 to 128, 64 to 64, 1 and less to 1."""
    return 1 << max(n - 1, 0).bit_length()
