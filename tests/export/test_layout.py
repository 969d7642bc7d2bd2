"""A checkpoint laid out: the same tensors as one file a part, whatever they lay in, and graphs that point into it."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file

from engines.graphs import graph_of
from export.layout import lay_out
from export.networks import NETWORKS
from export.parity import NETWORK_TOLERANCE, network_error, session
from export.point import point
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.errors import CheckpointError
from tests.support.checkpoints import make_checkpoint
from tests.support.layouts import PATHS, UNET, shard
from tests.support.original import make_folder, write_original


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "made")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_weights_of_other_types_and_in_shards(tmp_path: Path, dtype: torch.dtype) -> None:
    """All come out as one file a part, in their own types; the graphs convert what is no float32."""
    folder = make_checkpoint(tmp_path / "tiny", dtype=dtype)
    shard(folder, "text_encoder")
    checkpoint, network = open_checkpoint(folder), NETWORKS[0]
    stored = lay_out(checkpoint, tmp_path / "laid")
    laid = open_checkpoint(tmp_path / "laid")
    assert laid.weights.digest() == checkpoint.weights.digest()
    path = tmp_path / "laid" / network.graph
    model = onnx.load_from_string(graph_of(network.name, checkpoint.spec))
    point(model, stored[network.part], path.parent)
    onnx.save(model, path)
    outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
    net = network.load(checkpoint.spec, checkpoint.weights)
    kinds = {torch.bfloat16: "BFLOAT16", torch.float32: "FLOAT", torch.float64: "DOUBLE"}
    assert {tensor.data_type for tensor in outside} == {onnx.TensorProto.DataType.Value(kinds[dtype])}
    assert len(outside) == len(list(net.parameters()))
    assert {e.value for tensor in outside for e in tensor.external_data if e.key == "location"} == {"model.safetensors"}
    assert any(node.op_type == "Cast" and "weight" in node.input[0] for node in model.graph.node) == (
        dtype != torch.float32
    )
    assert network_error(network, checkpoint.spec, net, session(path)) < NETWORK_TOLERANCE


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_single_file_is_laid_out_as_its_folder(tmp_path: Path, kind: str) -> None:
    """Fused projections in parts, 1x1 convolutions, types mixed: the files that diffusers would have written."""
    folder = make_folder(tmp_path / "folder", kind, levels=2)
    file = write_original(folder, kind, tmp_path / "model.safetensors", levels=2)
    lay_out(open_checkpoint(file, "epsilon"), tmp_path / "laid")
    for path in PATHS.values():
        laid, wanted = load_file(tmp_path / "laid" / path), load_file(folder / path)
        assert laid.keys() == wanted.keys()
        for name, tensor in wanted.items():
            got = laid[name]
            if got.shape != tensor.shape:
                assert got.shape == (*tensor.shape, 1, 1) and path.startswith("vae/")
            assert got.dtype == tensor.dtype and torch.equal(got.reshape(tensor.shape), tensor), name
    again, first = open_checkpoint(tmp_path / "laid"), open_checkpoint(file, "epsilon")
    assert again.spec == first.spec and again.weights.digest() == first.weights.digest()


def test_whatever_takes_the_files_name_later_is_not_laid_out(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder)
    (make_checkpoint(tmp_path / "new", seed=7) / UNET).replace(folder / UNET)
    lay_out(checkpoint, tmp_path / "laid")
    assert open_checkpoint(tmp_path / "laid").weights.digest() == checkpoint.weights.digest()


def test_a_file_that_shrinks_while_it_is_laid_out(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder)
    os.truncate(folder / UNET, 1000)
    with pytest.raises(CheckpointError, match=f"^{folder / UNET} became shorter while it was read"):
        lay_out(checkpoint, tmp_path / "laid")
