"""What the kernels' tests share: inputs, outputs that were never zero, and the distance from float64."""

from __future__ import annotations

import numpy as np
import torch

# Relative to 1 + |wanted|. Half: a result rounded once to 11 bits is off by 2^-12 of itself; twice that, because what
# was rounded carries float32's own error across a boundary. Single: 2^-24 a rounding, some dozens of roundings.
HALF, SINGLE = 2.0**-11, 4e-6


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def poisoned(like: torch.Tensor) -> torch.Tensor:
    """NaN wherever the kernel forgets to write."""
    return torch.full_like(like, torch.nan)


def assert_close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    error = ((got.double() - wanted).abs() / (1 + wanted.abs())).max().item()
    assert error <= tolerance, f"{error:.3g} is more than {tolerance:.3g}"


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    assert got.shape == wanted.shape and got.dtype == wanted.dtype == np.float32
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
