"""What several tests of the samplers need."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture
def rounded_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 square roots of torch as IEEE 754 wants them.

    torch takes them from MKL, whose last bit is wrong for one in five (AMD EPYC, torch 2.13). Rescaling to zero
    terminal SNR subtracts nearly equal roots, and that bit becomes 4e-6 of the last alphas and 5e-5 of a picture.
    """

    def root(values: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(np.sqrt(values.numpy()))

    power = torch.Tensor.__pow__
    monkeypatch.setattr(torch.Tensor, "__pow__", lambda x, p: root(x) if p == 0.5 else power(x, p))
    monkeypatch.setattr(torch.Tensor, "sqrt", root)
    monkeypatch.setattr(torch, "sqrt", root)
