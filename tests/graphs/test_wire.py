"""graphs/wire.py against onnx's own reader, over every committed graph; and bytes that are no graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from export.committed import TESTS, committed, under_test
from export.graph import OPSET
from export.networks import BY_NAME, NETWORKS
from graphs import name_of, ports, wire
from model.weights import empty

COMMITTED = committed()
SMALL = [TESTS / name_of(network.name, under_test()["sd1"]) for network in NETWORKS]
SMALL.append(TESTS / name_of("unet", under_test()["lcm"]))
TEXT = SMALL[0].read_bytes()
FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


@pytest.fixture(params=COMMITTED, ids=lambda path: path.name)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def sides(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(None if dim.dim_param else dim.dim_value for dim in value.type.tensor_type.shape.dim)


def test_a_dot_tells_a_weight_from_an_input(path: Path) -> None:
    """The weights are the network's parameters, in its order; the others what goes into it."""
    name, spec = COMMITTED[path]
    net = empty(lambda: BY_NAME[name].build(spec))
    model = path.read_bytes()
    shapes = [(name, tuple(parameter.shape)) for name, parameter in net.named_parameters()]
    assert list(wire.weights(model).items()) == shapes
    assert list(wire.ports(model)) == [
        wire.Port(port.name, port.dtype, tuple(None if isinstance(side, str) else side for side in port.shape))
        for port in ports.inputs(name, spec)
    ]
    assert [value.name for value in onnx.load_from_string(model).graph.output] == ports.outputs(name, spec)


def test_inputs_are_what_onnx_reads(path: Path) -> None:
    model = onnx.load(path)
    types = {FLOAT: "float32", onnx.TensorProto.INT64: "int64"}
    inputs = [wire.Port(v.name, types[v.type.tensor_type.elem_type], sides(v)) for v in model.graph.input]
    assert list(wire.ports(path.read_bytes())) == [port for port in inputs if "." not in port.name]
    assert wire.weights(path.read_bytes()) == {port.name: port.dims for port in inputs if "." in port.name}
    assert wire.external_files(path.read_bytes()) == set()


def test_a_graph_is_as_the_readme_says(path: Path) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert not model.functions and not model.metadata_props and not model.graph.value_info
    assert "Cast" not in {node.op_type for node in model.graph.node if any("." in name for name in node.input)}
    assert all(not tensor.external_data and tensor.ByteSize() < 1024 for tensor in model.graph.initializer)
    assert [sides(value)[0] for value in model.graph.output] == [None] * len(model.graph.output)
    names = {dim.dim_param for v in model.graph.output for dim in v.type.tensor_type.shape.dim} - {""}
    assert all(name.split("*")[-1] in ("rows", "h", "w", "tokens") for name in names), names


def test_weights_become_initializers_and_nothing_else_changes(path: Path) -> None:
    model, rewritten = onnx.load(path), onnx.load_from_string(wire.with_initializers(path.read_bytes(), "nowhere"))
    assert {tensor.name: tuple(tensor.dims) for tensor in rewritten.graph.initializer if tensor.external_data} == (
        wire.weights(path.read_bytes())
    )
    for tensor in rewritten.graph.initializer[len(model.graph.initializer) :]:
        assert (tensor.data_type, tensor.data_location) == (FLOAT, onnx.TensorProto.EXTERNAL)
        assert {entry.key: entry.value for entry in tensor.external_data} == {
            "location": "nowhere",
            "offset": "0",
            "length": "0",
        }
    assert wire.external_files(rewritten.SerializeToString()) == {"nowhere"}
    del rewritten.graph.initializer[len(model.graph.initializer) :]
    del model.graph.input[len(wire.ports(path.read_bytes())) :]
    assert rewritten == model


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.name)
def test_onnxruntime_computes_the_same_with_either(path: Path) -> None:
    model, chance = path.read_bytes(), np.random.default_rng(0)
    values = {
        name: (0.2 * chance.standard_normal(shape)).astype(np.float32) for name, shape in wire.weights(model).items()
    }
    feeds = {}
    for port in wire.ports(model):
        shape = [2 if i == 0 else side or 8 for i, side in enumerate(port.dims)]
        drawn = chance.integers(0, 99, shape) if port.dtype == "int64" else chance.standard_normal(shape)
        feeds[port.name] = drawn.astype(port.dtype)
    options = onnxruntime.SessionOptions()
    kept = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in values.values()]
    options.add_external_initializers(list(values), kept)
    bound = onnxruntime.InferenceSession(wire.with_initializers(model), options, providers=["CPUExecutionProvider"])
    assert [entry.name for entry in bound.get_inputs()] == list(feeds)
    free = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for one, other in zip(bound.run(None, feeds), free.run(None, feeds | values), strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert other.std() > 0 and np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


READERS: list[Callable[[bytes], object]] = [wire.weights, wire.ports, wire.with_initializers]


@pytest.mark.parametrize("read", READERS)
def test_a_graph_that_is_cut_short(read: Callable[[bytes], object]) -> None:
    lengths = {*range(0, len(TEXT), 97), *range(64), *range(len(TEXT) - 64, len(TEXT))}
    for length in lengths:
        with pytest.raises(ValueError):
            read(TEXT[:length])
    read(TEXT)


@pytest.mark.parametrize("read", READERS)
def test_a_graph_with_a_byte_that_is_another(read: Callable[[bytes], object]) -> None:
    """A byte of a node is not seen here; whatever is seen is refused as ValueError and nothing else."""
    chance, refused = np.random.default_rng(1), 0
    for at, mask in zip(chance.integers(0, len(TEXT), 600), chance.integers(1, 256, 600), strict=True):
        damaged = bytearray(TEXT)
        damaged[at] ^= mask
        try:
            read(bytes(damaged))
        except ValueError:
            refused += 1
    assert refused > 60


def changed(change: Callable[[onnx.GraphProto], object]) -> bytes:
    model = onnx.load_from_string(TEXT)
    change(model.graph)
    return model.SerializeToString()


def weight(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    return graph.input[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: setattr(weight(g).type.tensor_type, "elem_type", HALF), "is float16 .*, not float32"),
        (lambda g: setattr(weight(g).type.tensor_type, "elem_type", 99), "no type that is known"),
        (lambda g: setattr(weight(g).type.tensor_type.shape.dim[0], "dim_param", "n"), "not float32 of one shape"),
        (lambda g: setattr(weight(g).type.tensor_type.shape.dim[0], "dim_value", 1 << 40), "a side that is no size"),
        (lambda g: setattr(weight(g).type.tensor_type.shape.dim[0], "dim_value", -1), "a side that is no size"),
        (lambda g: weight(g).ClearField("type"), "no type that is known"),
        (lambda g: weight(g).ClearField("name"), "has no name"),
        (lambda g: g.input.append(weight(g)), "no names of their own"),
        (lambda g: g.ClearField("input"), "no names of their own"),
    ],
)
def test_inputs_that_are_none(change: Callable[[onnx.GraphProto], object], words: str) -> None:
    for read in (wire.weights, wire.with_initializers):
        with pytest.raises(ValueError, match=words):
            read(changed(change))


def test_two_graphs_or_none() -> None:
    for model in (TEXT + TEXT, onnx.ModelProto(ir_version=10).SerializeToString(), b""):
        with pytest.raises(ValueError, match=r"cut short, or no model: \d graphs"):
            wire.weights(model)
