"""The graphs: what they hold, where their weights lie, and that they compute at any shape what torch computes."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from engines.artifact.opened import Artifact
from export.graph import OPSET
from export.networks import NETWORKS, Network
from export.parity import relative_error
from model.transformer import Attention
from pipeline.checkpoint.weights import folder_weights

# Orders of summation differ; measured 1e-6 at the example's shape.
TOLERANCE = 1e-4
TYPES = {"F16": onnx.TensorProto.FLOAT16, "F32": onnx.TensorProto.FLOAT}

Case = tuple[Artifact, Network, onnx.ModelProto, nn.Module]


@pytest.fixture(scope="module", params=["epsilon", "v"])
def exported(request: pytest.FixtureRequest) -> Artifact:
    return request.getfixturevalue("artifact" if request.param == "epsilon" else "v_artifact")


@pytest.fixture(params=NETWORKS, ids=lambda network: network.name)
def case(exported: Artifact, request: pytest.FixtureRequest) -> Case:
    network: Network = request.param
    graph = onnx.load(exported.graph(network.name), load_external_data=False)
    return exported, network, graph, network.load(exported.spec, folder_weights(exported.folder))


def header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors of a safetensors file begin, and its own list of them."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        return 8 + size, json.loads(file.read(size))


def outside(graph: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in graph.graph.initializer if tensor.external_data}


def test_every_weight_lies_in_the_checkpoints_own_file(case: Case) -> None:
    artifact, network, graph, net = case
    folder = artifact.graph(network.name).parent
    known = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}
    found = set()
    for own, tensor in outside(graph).items():
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert place.keys() == {"location", "offset", "length"}
        assert place["location"] in {"model.safetensors", "diffusion_pytorch_model.safetensors"}
        base, entries = header(folder / place["location"])
        name = own.removesuffix(".f16")
        entry = entries[name]
        start, end = entry["data_offsets"]
        assert (int(place["offset"]), int(place["length"])) == (base + start, end - start)
        assert tensor.data_type == TYPES[entry["dtype"]]
        assert tuple(tensor.dims) == tuple(entry["shape"]) == known[name], "as it is stored: never transposed"
        assert not tensor.raw_data and not tensor.float_data
        found.add(name)
    assert found == known.keys()


def test_nothing_large_lies_in_the_graph(case: Case) -> None:
    _, _, graph, _ = case
    inline = [tensor for tensor in graph.graph.initializer if not tensor.external_data]
    sizes = [tensor.ByteSize() for tensor in inline]
    sizes += [node.ByteSize() for node in graph.graph.node if node.op_type == "Constant"]
    assert max(sizes, default=0) < 1024
    assert sum(sizes) < 8192


def test_half_precision_is_cast_once(case: Case) -> None:
    _, _, graph, net = case
    casts = [node for node in graph.graph.node if node.op_type == "Cast" and node.input[0].endswith(".f16")]
    assert {node.input[0] for node in casts} == outside(graph).keys()
    assert len(casts) == len(list(net.parameters()))


def test_what_should_be_one_node_is_one(case: Case) -> None:
    artifact, network, graph, net = case
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", OPSET)] and OPSET == 23
    assert not graph.functions
    counts = Counter(node.op_type for node in graph.graph.node)
    groups = sum(isinstance(module, nn.GroupNorm) for module in net.modules())
    layers = sum(isinstance(module, nn.LayerNorm) for module in net.modules())
    attentions = sum(isinstance(module, Attention) for module in net.modules())
    if network.name == "text_encoder":
        attentions = artifact.spec.text.layers
    assert attentions > 0
    assert counts["Attention"] == attentions
    assert counts["GroupNormalization"] == groups
    # One more for each skip: the text encoder's last normalisation is applied to each layer that may be the last.
    assert counts["LayerNormalization"] >= layers
    assert not counts.keys() & {"Softmax", "InstanceNormalization", "ReduceMean", "Loop", "If", "Identity"}
    assert counts["Conv"] == sum(isinstance(module, nn.Conv2d) for module in net.modules())


def test_inputs_have_names_for_what_varies(case: Case) -> None:
    _, network, graph, _ = case

    def shape(value: onnx.ValueInfoProto) -> list[int | str]:
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    for port, value in zip(network.inputs(case[0].spec), graph.graph.input, strict=True):
        assert port.name == value.name
        for position, (dim, example) in enumerate(zip(shape(value), port.value.shape, strict=True)):
            assert isinstance(dim, str) if position in port.dynamic else dim == example
    assert all(shape(value)[0] == "rows" for value in graph.graph.output)


def test_no_word_about_the_machine(case: Case) -> None:
    artifact, network, graph, _ = case
    data = artifact.graph(network.name).read_bytes()
    for word in (b"site-packages", b".py", b"/home", b"/tmp", b"/usr", str(Path.cwd()).encode(), b"stack_trace"):
        assert word not in data, word
    assert graph.producer_name == "latentd" and not graph.metadata_props


SHAPES = {
    "text_encoder": [(1,), (5,)],
    "unet": [(1, 1, 1, 7), (3, 5, 2, 40), (8, 2, 7, 1)],  # rows, sides in units, tokens
    "vae_decoder": [(1, 1, 1), (3, 2, 5)],
    "vae_encoder": [(1, 1, 1), (2, 5, 2)],
}


def inputs(artifact: Artifact, network: str, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    spec, chance = artifact.spec, np.random.default_rng(len(shape))
    unit = spec.size_multiple // spec.vae.factor

    def normal(*sides: int) -> np.ndarray:
        return chance.standard_normal(sides, dtype=np.float32)

    if network == "text_encoder":
        return {"ids": chance.integers(0, spec.text.vocab_size, (shape[0], spec.text.tokens))}
    rows, height, width = shape[:3]
    if network == "vae_encoder":
        return {"picture": normal(rows, 3, height * spec.size_multiple, width * spec.size_multiple)}
    latents = normal(rows, spec.vae.latent_channels, height * unit, width * unit)
    if network == "vae_decoder":
        return {"latents": latents}
    timesteps = chance.uniform(0, spec.schedule.train_steps, rows).astype(np.float32)
    return {"sample": latents, "timestep": timesteps, "context": normal(rows, shape[3], spec.text.width)}


def test_other_shapes_than_the_examples(case: Case) -> None:
    artifact, network, _, net = case
    session = onnxruntime.InferenceSession(str(artifact.graph(network.name)), providers=["CPUExecutionProvider"])
    for shape in SHAPES[network.name]:
        values = inputs(artifact, network.name, shape)
        with torch.inference_mode():
            told = net(*(torch.from_numpy(value) for value in values.values()))
        wanted = [tensor.numpy() for tensor in (told if isinstance(told, tuple) else (told,))]
        got = [np.asarray(value) for value in session.run(None, values)]
        for one, other in zip(got, wanted, strict=True):
            assert one.shape == other.shape
            assert relative_error(one, other) < TOLERANCE


def test_rows_have_their_own_timesteps(artifact: Artifact) -> None:
    session = onnxruntime.InferenceSession(str(artifact.graph("unet")), providers=["CPUExecutionProvider"])
    values = inputs(artifact, "unet", (1, 2, 2, 16))
    both = {name: np.repeat(value, 2, axis=0) for name, value in values.items()}
    both["timestep"] = np.array([10, 700], np.float32)
    out = np.asarray(session.run(None, both)[0])
    for row, timestep in enumerate((10, 700)):
        alone = session.run(None, values | {"timestep": np.array([timestep], np.float32)})[0]
        assert relative_error(out[row], np.asarray(alone)[0]) < TOLERANCE
    assert relative_error(out[0], out[1]) > 0.01
