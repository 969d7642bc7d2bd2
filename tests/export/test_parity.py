"""The check that a manifest rests on: it fails for a graph or a network that is a little wrong, or not a number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engines.artifact.opened import Artifact
from export.networks import NETWORKS, Network
from export.parity import ExportError, network_error, relative_error, session, trajectory_error
from pipeline.checkpoint.opened import Checkpoint
from pipeline.tokenizer import ClipTokenizer

UNET = next(network for network in NETWORKS if network.name == "unet")


@pytest.fixture(params=NETWORKS, ids=lambda network: network.name)
def network(request: pytest.FixtureRequest) -> Network:
    return request.param


def perturbed(net: nn.Module, factor: float) -> nn.Module:
    """The largest weight times `factor`."""
    with torch.no_grad():
        max(net.parameters(), key=lambda parameter: parameter.numel()).mul_(factor)
    return net


def test_right_wrong_and_not_a_number(artifact: Artifact, checkpoint: Checkpoint, network: Network) -> None:
    running = session(artifact.graph(network.name))
    spec, weights = checkpoint.spec, checkpoint.weights
    assert network_error(network, spec, network.load(spec, weights), running) < 1e-5
    with pytest.raises(ExportError, match=f"^{network.name}: ONNX Runtime differs from torch"):
        network_error(network, spec, perturbed(network.load(spec, weights), 1.01), running)
    with pytest.raises(ExportError, match="differs from torch by nan"):
        network_error(network, spec, perturbed(network.load(spec, weights), float("nan")), running)


def test_a_trajectory(artifact: Artifact, checkpoint: Checkpoint) -> None:
    spec, weights = checkpoint.spec, checkpoint.weights
    tokenizer = ClipTokenizer(checkpoint.source, spec.text)
    ids = np.stack([tokenizer.encode(text).ids for text in ("a red apple", "")])
    context = np.asarray(session(artifact.graph("text_encoder")).run(None, {"ids": ids})[0])
    running = session(artifact.graph("unet"))
    assert 0 < trajectory_error(spec, UNET.load(spec, weights), running, context) < 1e-4
    with pytest.raises(ExportError, match=r"^the trajectory: "):
        trajectory_error(spec, perturbed(UNET.load(spec, weights), 1.5), running, context)


def test_an_error_is_relative_to_the_largest() -> None:
    wanted = np.array([1.0, -4.0], np.float32)
    assert relative_error(wanted + np.array([0.0, 1.0], np.float32), wanted) == 0.25


@pytest.mark.parametrize("content", [b"", b"not a graph", None])
def test_what_is_no_graph(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match="is not a graph that ONNX Runtime takes"):
        session(path)


def test_a_graph_without_its_weights(artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(artifact.graph("unet").read_bytes())
    with pytest.raises(ExportError, match="is not a graph that ONNX Runtime takes"):
        session(path)
