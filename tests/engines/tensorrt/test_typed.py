"""A typed graph is the same network: bit for bit in float32, up to rounding in float16; no weight is copied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from engines.artifact.opened import GRAPHS, Artifact
from engines.tensorrt.types.emulation import emulate, emulation, largest_error
from engines.tensorrt.types.graph_run import run_graph
from engines.tensorrt.types.samples import samples
from engines.tensorrt.types.typed import MOVES, element_types, fix_shapes, sinusoids, typed

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}


def load(artifact: Artifact, network: str) -> ModelProto:
    return onnx.load(artifact.graph(network), load_external_data=False)


def external(model: ModelProto) -> set[tuple[str, ...]]:
    return {
        (tensor.name, str(tensor.data_type), *(f"{entry.key}={entry.value}" for entry in tensor.external_data))
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    }


@pytest.mark.parametrize("network", GRAPHS)
@pytest.mark.parametrize("base", ["f16", "bf16", "f32"])
def test_everything_computes_in_the_base_type_but_the_waves(network: str, base: str, artifact: Artifact) -> None:
    model = load(artifact, network)
    graph = typed(model, base, {})
    kinds, waves = element_types(graph.graph), sinusoids(graph.graph)
    assert bool(waves) == (network == "unet")
    want = {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16, "f32": TensorProto.FLOAT}[base]
    for node in graph.graph.node:
        kind = kinds[node.output[0]]
        if node.op_type != "Cast" and kind in FLOATS:
            assert kind == (TensorProto.FLOAT if node.output[0] in waves else want), node.output[0]
            given = {kinds[name] for name in node.input if name and kinds[name] in FLOATS}
            assert node.op_type == "Resize" or given <= {kind}, f"{node.output[0]} reads {given}"
    ports = [*graph.graph.input, *graph.graph.output]
    assert {kinds[port.name] for port in ports} <= {TensorProto.FLOAT, TensorProto.INT64}
    assert [port.name for port in ports] == [port.name for port in (*model.graph.input, *model.graph.output)]


@pytest.mark.parametrize("network", GRAPHS)
def test_weights_stay_where_they_lie(network: str, artifact: Artifact) -> None:
    """The checkpoint's are float16: in a float16 graph they need no cast, in any other one each."""
    model = load(artifact, network)
    for base in ("f16", "f32"):
        graph = typed(model, base, {})
        assert external(graph) == external(model)
        weights = {name for name, *_ in external(graph)}
        casts = [node for node in graph.graph.node if node.op_type == "Cast" and node.input[0] in weights]
        assert bool(casts) == (base == "f32")
        assert sum(len(tensor.raw_data) for tensor in graph.graph.initializer) < 1 << 12, "a copy of a weight"


@pytest.mark.parametrize("network", GRAPHS)
def test_in_float32_the_graph_is_itself(network: str, artifact: Artifact) -> None:
    path, feeds = artifact.graph(network), samples(artifact, network)
    (mine, *_), (own, *_) = (
        list(run_graph(graph, path.parent, feeds[:1]))
        for graph in (typed(load(artifact, network), "f32", {}).SerializeToString(), path.read_bytes())
    )
    for name, value in own.items():
        assert (mine[name] == value).all(), name


@pytest.mark.parametrize("network", GRAPHS)
def test_float16_rounds_and_bfloat16_rounds_more(network: str, artifact: Artifact) -> None:
    """11 and 8 bits of mantissa over some ten to a hundred layers: about 1e-3 and 1e-2 of the largest value."""
    path, feeds = artifact.graph(network), samples(artifact, network)
    wanted = list(run_graph(path.read_bytes(), path.parent, feeds))
    errors = {}
    for base in ("f32", "f16", "bf16"):
        graph = typed(load(artifact, network), base, {})
        errors[base] = largest_error(emulate(graph, path.parent, feeds), wanted)
    assert errors["f32"] == 0 and 1e-4 < errors["f16"] < 1e-2, errors
    assert 3 * errors["f16"] < errors["bf16"] < 0.2, errors


def test_an_island_has_casts_around_it(artifact: Artifact) -> None:
    model = load(artifact, "vae_decoder")
    node = [node for node in model.graph.node if node.op_type == "Conv"][3]
    graph = typed(model, "f16", {node.output[0]: "f32"})
    kinds = element_types(graph.graph)
    wide = [n for n in graph.graph.node if n.op_type != "Cast" and kinds[n.output[0]] == TensorProto.FLOAT]
    assert [n.output[0] for n in wide] == [node.output[0]]
    assert {kinds[name] for name in wide[0].input} == {TensorProto.FLOAT}
    after = [n for n in graph.graph.node if node.output[0] in n.input]
    assert after and all(n.op_type == "Cast" and kinds[n.output[0]] == TensorProto.FLOAT16 for n in after)


def attention(causal: bool) -> tuple[ModelProto, dict[str, np.ndarray]]:
    shape, rng = [2, 3, 5, 4], np.random.default_rng(0)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "qkv"]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], is_causal=int(causal))
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    model = helper.make_model(helper.make_graph([node], "a", ports, [out]), opset_imports=[helper.make_opsetid("", 23)])
    model.ir_version = 10
    return model, {name: rng.standard_normal(shape).astype(np.float32) for name in "qkv"}


@pytest.mark.parametrize("causal", [False, True])
def test_attention_taken_apart_is_attention(causal: bool) -> None:
    model, feed = attention(causal)
    (own,) = run_graph(model.SerializeToString(), Path(), [feed])
    graph = typed(model, "f16", {})
    apart = emulation(graph)
    assert "Attention" not in {node.op_type for node in apart.graph.node}
    (mine,) = emulate(graph, Path(), [feed])
    # Values of about one, softmax of five: a few roundings of 2^-11.
    assert 0 < np.abs(mine["y"] - own["y"]).max() < 5e-3
    (other,) = emulate(typed(attention(not causal)[0], "f16", {}), Path(), [feed])
    assert np.abs(other["y"] - own["y"]).max() > 0.1, "the check must be able to fail"


def test_emulation_overflows_where_float16_does() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    nodes = [helper.make_node("Mul", ["x", "x"], ["big"]), helper.make_node("Div", ["big", "x"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "a", [x], [y]), opset_imports=[helper.make_opsetid("", 23)])
    model.ir_version = 10
    feed = {"x": np.array([200.0, 300.0], np.float32)}
    (narrow,) = emulate(typed(model, "f16", {}), Path(), [feed])
    (wide,) = emulate(typed(model, "f16", {"big": "f32", "y": "f32"}), Path(), [feed])
    assert narrow["y"].tolist() == [200.0, np.inf] and wide["y"].tolist() == [200.0, 300.0]


def test_shapes_are_fixed_or_refused(artifact: Artifact) -> None:
    spec = artifact.spec
    shapes = {"ids": (3, spec.text.tokens)}
    model = load(artifact, "text_encoder")
    fix_shapes(model, shapes)
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [3, spec.text.tokens]
    for wrong, named in (
        ({"tokens": (3, spec.text.tokens)}, "tokens"),
        ({"ids": (3,)}, "ids has 2 dimensions"),
        ({"ids": (3, spec.text.tokens + 1)}, f"dimension 1 of ids is {spec.text.tokens}"),
    ):
        with pytest.raises(ValueError, match=named):
            fix_shapes(load(artifact, "text_encoder"), wrong)


def test_moves_compute_nothing() -> None:
    assert not MOVES & {"Add", "Mul", "Resize", "Softmax", "Cast"}
