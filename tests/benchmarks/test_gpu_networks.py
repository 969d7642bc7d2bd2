"""What the sections measure is what serves."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from benchmarks.gpu.frame.report import Report
from benchmarks.gpu.subjects.networks import ours, unet, vae


@pytest.fixture
def report() -> Report:
    return Report("test", torch.device("cpu"), torch.float32, [], {}, until=time.monotonic() + 100)


def test_our_networks_have_their_biases_folded_as_the_backend_has_them(report: Report) -> None:
    """torch adds a convolution's bias in a pass of its own over the picture."""
    for folded, plain in (
        (unet(report, "SD 1.5", ops=ours(report)), unet(report, "SD 1.5")),
        (vae(report, ops=ours(report)), vae(report)),
    ):
        assert _biases(folded) < _biases(plain)


def _biases(net: nn.Module) -> int:
    return sum(conv.bias is not None for conv in net.modules() if isinstance(conv, nn.Conv2d))
