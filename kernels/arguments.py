"""Checks that launchers make of their tensors before a kernel gets the pointers: a wrong one reads foreign memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def require(true: bool, sentence: str) -> None:
    """Raise ValueError with `sentence`, which names the tensor, what it is and what it must be."""
    if not true:
        raise ValueError(sentence)


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    require(tuple(tensor.shape) == shape, f"{name} has shape {tuple(tensor.shape)}; it must be {shape}")


def require_dtype(name: str, tensor: Tensor, *dtypes: torch.dtype) -> None:
    require(tensor.dtype in dtypes, f"{name} is {tensor.dtype}; it must be {' or '.join(map(str, dtypes))}")


def require_contiguous(name: str, tensor: Tensor) -> None:
    require(tensor.is_contiguous(), f"{name} has strides {tensor.stride()}; it must be contiguous")


def require_aligned(**tensors: Tensor) -> None:
    """Check that tensors lie on one device at multiples of 16 bytes, which the kernels are compiled for."""
    devices = {tensor.device for tensor in tensors.values()}
    require(len(devices) <= 1, f"{', '.join(tensors)} lie on {len(devices)} devices; they must lie on one")
    for name, tensor in tensors.items():
        require(tensor.data_ptr() % 16 == 0, f"{name} starts {tensor.data_ptr() % 16} bytes past a multiple of 16")


def floats() -> tuple[torch.dtype, ...]:
    """Return the types that a network computes in."""
    import torch

    return torch.float16, torch.bfloat16, torch.float32


def rows_of(name: str, x: Tensor) -> Tensor:
    """View x [.., c] as [rows, c]. Errors: ValueError where the leading dimensions have no common stride."""
    try:
        rows = x.view(-1, x.shape[-1])
    except RuntimeError:
        rows = None
    if rows is None or rows.stride(1) != 1:
        raise ValueError(f"{name} has strides {x.stride()}; the last must be 1, and the others one stride apart")
    return rows
