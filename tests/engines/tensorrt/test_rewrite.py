"""The rewritten graph node by node, by its numbers, and through NVIDIA's own ONNX parser (that of TensorRT for RTX)."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from engines.artifact.opened import Artifact
from engines.build.builder import Order
from engines.errors import BackendError
from engines.tensorrt.build.builder import TensorRtBuilder
from engines.tensorrt.plugins.rewrite import Rewritten, rewrite
from engines.tensorrt.types.typed import fix_shapes, typed
from kernels.plugins import NAMESPACE, Attention, compile_plugin
from pipeline.checkpoint.opened import open_checkpoint
from tests.support.plugin_doubles import body

SHAPES = {"sample": (2, 3, 8, 16), "timestep": (2,), "context": (2, 16, 48)}


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two heads, of 32 and of 40 in the middle: both of the kernel's widths."""
    from export.artifact import export
    from tests.support.checkpoints import make_checkpoint

    config = {"block_out_channels": [64, 80], "attention_head_dim": 2}
    folder = tmp_path_factory.mktemp("plugins")
    checkpoint = open_checkpoint(make_checkpoint(folder / "checkpoint", unet=config))
    return export(checkpoint, folder / "artifact", say=lambda line: None)


@pytest.fixture(scope="module")
def model(unet: Artifact) -> ModelProto:
    return typed(onnx.load(unet.folder / "unet/model.onnx", load_external_data=False), "f16", {})


@pytest.fixture(scope="module")
def rewritten(model: ModelProto) -> Rewritten:
    return rewrite(model, "triton")


def attentions(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Attention"]


def test_every_attention_is_replaced(model: ModelProto, rewritten: Rewritten) -> None:
    assert len(attentions(model)) == 8 and not attentions(rewritten.model)
    assert list(rewritten.replaced) == [node.output[0] for node in attentions(model)] and not rewritten.kept
    assert rewritten.plugins == [Attention(2, 32), Attention(2, 40)]
    assert attentions(rewrite(model).model) == attentions(model), "the original is untouched, and native is the default"
    assert set(rewrite(model).kept.values()) == {"native was asked for"}


def test_node_by_node(model: ModelProto, rewritten: Rewritten) -> None:
    makers = {name: node for node in model.graph.node for name in node.output}
    takers = {name: node for node in model.graph.node for name in node.input}
    plugins = {node.output[0]: node for node in rewritten.model.graph.node if node.domain == NAMESPACE}
    gone: list[NodeProto] = []
    for node in attentions(model):
        before = [[makers[name], makers[makers[name].input[0]]] for name in node.input]
        after = [takers[node.output[0]], takers[takers[node.output[0]].output[0]]]
        assert [[n.op_type for n in pair] for pair in before] == [["Transpose", "Reshape"]] * 3
        assert [n.op_type for n in after] == ["Transpose", "Reshape"]
        new = plugins.pop(after[1].output[0])
        assert list(new.input) == [reshape.input[0] for _, reshape in before]
        assert new.op_type == rewritten.replaced[node.output[0]] and new.name == node.name
        assert {a.name: helper.get_attribute_value(a) for a in new.attribute} == {
            "plugin_namespace": b"latentd",
            "plugin_version": b"1",
            "aot": 1,
        }
        gone += [node, *after, *(n for pair in before for n in pair)]
    assert not plugins
    # All else is as it was and in its order; what else fell away made nothing but shapes for the nodes that are gone.
    old = [n for n in model.graph.node if n not in gone]
    new_nodes = [n for n in rewritten.model.graph.node if n.domain != NAMESPACE]
    rest = iter(old)
    assert all(any(node == other for other in rest) for node in new_nodes), "a subsequence"
    fallen = [n for n in old if n not in new_nodes]
    assert {n.op_type for n in fallen} <= {"Concat", "Reshape", "Shape", "Squeeze", "Mul"}
    assert rewritten.model.graph.input == model.graph.input and rewritten.model.graph.output == model.graph.output
    known = {v.name for v in model.graph.input} | {t.name for t in rewritten.model.graph.initializer}
    for node in rewritten.model.graph.node:
        assert {name for name in node.input if name} <= known, node.name
        known |= set(node.output)
    assert {v.name for v in model.graph.output} <= known
    used = {name for node in rewritten.model.graph.node for name in node.input}
    assert {t.name for t in rewritten.model.graph.initializer} <= used
    assert [(o.domain, o.version) for o in rewritten.model.opset_import] == [("", 23), (NAMESPACE, 1)]
    assert not rewritten.model.functions, "the parser would take a function of a plugin's name before the plugin"


def test_casts_to_float32_around_an_attention_fall_away_with_it(unet: Artifact, rewritten: Rewritten) -> None:
    """An island for an attention's sake (SD 2.1) widens what the kernel widens itself."""
    plain = onnx.load(unet.folder / "unet/model.onnx", load_external_data=False)
    islands = typed(plain, "f16", {node.output[0]: "f32" for node in attentions(plain)})
    assert len(islands.graph.node) > len(typed(plain, "f16", {}).graph.node)
    again = rewrite(islands, "triton")
    assert again.model.graph.node == rewritten.model.graph.node
    wide = rewrite(typed(plain, "f32", {}), "triton")
    assert set(wide.kept.values()) == {"the kernel takes fp16 and bf16, not fp32"} and not wide.plugins


@pytest.mark.compiled
def test_the_builders_option(unet: Artifact, rewritten: Rewritten, monkeypatch: pytest.MonkeyPatch) -> None:
    """`attention` is a part of an engine's identity, and its plugins are registered before anything is parsed."""
    seen: list[str] = []

    def register(trtp: Any, plugins: list[Attention], arch: int) -> list[Any]:
        seen.extend(f"{plugin.name} sm_{arch}" for plugin in plugins)
        return [compile_plugin(plugin, arch) for plugin in plugins]

    def compile_graph(self: Any, order: Any, graph: ModelProto, out: Path, say: Any) -> tuple[dict[str, Any], Any]:
        seen.append("parsed")
        assert {node.op_type for node in graph.graph.node if node.domain} == {
            "attention_2x32_bf16",
            "attention_2x40_bf16",
        }
        return {"inputs": []}, {}

    monkeypatch.setattr(
        "engines.tensorrt.build.builder.api", lambda rtx: types.SimpleNamespace(__version__="11.4.0.106")
    )
    monkeypatch.setattr("engines.tensorrt.build.builder.choose_target", lambda trt, target, rtx: "sm_90")
    monkeypatch.setattr("engines.tensorrt.plugins.register.register", register)
    monkeypatch.setattr(TensorRtBuilder, "_compile", compile_graph)
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", types.ModuleType("tensorrt.plugin"))
    native = TensorRtBuilder(unet, None, "bf16", rtx=False)
    triton = TensorRtBuilder(unet, None, "bf16", rtx=False, attention="triton")
    order = Order("unet", SHAPES)
    plain, ours = native.identity(order), triton.identity(order)
    differing = {name for name in plain if plain[name] != ours[name]}
    assert differing == {"attention", "kernels"} and plain["kernels"] is None and len(ours["kernels"]) == 64
    facts = triton.build(order, Path("plan"), lambda line: None)
    assert seen == ["attention_2x32_bf16 sm_90", "attention_2x40_bf16 sm_90", "parsed"]
    assert facts["attention"] == "triton" and facts["native"] == {} and len(facts["replaced"]) == 8
    assert {name: len(digest) for name, digest in facts["plugins"].items()} == dict.fromkeys(
        ("attention_2x32_bf16", "attention_2x40_bf16"), 64
    )
    with pytest.raises(BackendError, match="attention 'fast' is unknown; tensorrt does native, triton"):
        TensorRtBuilder(unet, None, rtx=False, attention="fast")
    with pytest.raises(BackendError, match="TensorRT for RTX takes no plugins"):
        TensorRtBuilder(unet, None, rtx=True, attention="triton")


def run(model: ModelProto, folder: Path, name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    try:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, inputs)[0])
    finally:
        path.unlink()


def test_numbers(unet: Artifact, model: ModelProto, rewritten: Rewritten) -> None:
    """The rewritten network with a double of each plugin gives what the original gives."""
    double = doubled(rewritten)
    random = np.random.default_rng(1)
    inputs = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in SHAPES.items()}
    inputs["timestep"] = np.asarray([3, 999], np.float32)
    folder = unet.folder / "unet"
    original = run(model, folder, "original.onnx", inputs)
    assert np.isfinite(original).all() and original.std() > 1e-3
    # The same operations on the same fp16 numbers in the same order.
    np.testing.assert_array_equal(run(double, folder, "double.onnx", inputs), original)
    # And the double tells: with keys for values the picture is another.
    for node in double.graph.node:
        if node.domain == NAMESPACE:
            node.input[1], node.input[2] = node.input[2], node.input[1]
    assert np.abs(run(double, folder, "swapped.onnx", inputs) - original).max() > 1e-3


def doubled(rewritten: Rewritten) -> ModelProto:
    double = ModelProto()
    double.CopyFrom(rewritten.model)
    double.functions.extend(body(p.name, p.heads, p.width) for p in rewritten.plugins)
    return double


def test_nvidias_parser_takes_the_rest_of_the_graph(unet: Artifact, rewritten: Rewritten) -> None:
    """TensorRT for RTX has the parser of TensorRT 11, but no place for our plugins: their doubles stand in."""
    trt = pytest.importorskip("tensorrt_rtx")
    model = doubled(rewritten)
    fix_shapes(model, SHAPES)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    path = unet.folder / "unet" / "plugins.onnx"
    path.write_bytes(model.SerializeToString())
    parsed = parser.parse_from_file(str(path))
    path.unlink()
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    (result,) = (network.get_output(i) for i in range(network.num_outputs))
    assert tuple(result.shape) == SHAPES["sample"] and result.dtype == trt.float32


def test_nvidias_parser_finds_a_plugin_by_what_the_node_says() -> None:
    """Name, version and namespace reach the registry; the creator there makes nothing, and the parser says so."""
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)  # the errors are asked for, not printed
    builder = trt.Builder(logger)

    class Nothing(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self, name: str, namespace: str) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = name, "1", namespace
            self.field_names = trt.PluginFieldCollection([])
            self.asked: list[str] = []

        def create_plugin(self, name: str, fields: Any, phase: Any) -> None:
            self.asked.append(f"{name}: {len(fields)} attributes")

    def parse(model: ModelProto) -> str:
        fix_shapes(model, {name: (2, 16, 80) for name in "qkv"})
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        assert not parser.parse(model.SerializeToString())
        return parser.get_error(0).desc()

    model = rewrite(small(), "triton").model
    (node,) = model.graph.node
    elsewhere, ours = Nothing(node.op_type, "elsewhere"), Nothing(node.op_type, NAMESPACE)
    registry = trt.get_plugin_registry()
    registry.register_creator(elsewhere, "elsewhere")
    assert "Plugin not found" in parse(model)
    registry.register_creator(ours, NAMESPACE)
    try:
        assert "Could not create the plugin" in parse(model)
        assert ours.asked == ["y: 0 attributes"] and not elsewhere.asked
    finally:
        registry.deregister_creator(ours)
        registry.deregister_creator(elsewhere)


# One Attention as torch exports it, for what is left as it is.
def small(**changes: Any) -> ModelProto:
    given: dict[str, Any] = {
        "heads": 2,
        "width": 40,
        "perm": [0, 2, 1, 3],
        "attributes": {},
        "mask": False,
        "second": False,
    }
    given |= changes
    heads, width = given["heads"], given["width"]
    h, kind = helper, TensorProto.FLOAT16
    nodes = []
    for x in "qkv":
        nodes += [
            h.make_node("Reshape", [x, "apart"], [f"{x}4"]),
            h.make_node("Transpose", [f"{x}4"], [f"{x}t"], perm=given["perm"]),
        ]
    nodes += [
        h.make_node("Attention", ["qt", "kt", "vt", *(["mask"] * given["mask"])], ["y"], **given["attributes"]),
        h.make_node("Transpose", ["y"], ["yt"], perm=[0, 2, 1, 3]),
        h.make_node("Reshape", ["yt", "together"], ["out"]),
    ]
    outputs = [h.make_tensor_value_info("out", kind, ["n", "t", heads * width])]
    if given["second"]:
        outputs.append(h.make_tensor_value_info("y", kind, ["n", heads, "t", width]))
    inputs = [h.make_tensor_value_info(x, kind, ["n", f"{x}n", heads * width]) for x in "qkv"]
    if given["mask"]:
        inputs.append(h.make_tensor_value_info("mask", kind, ["qn", "kn"]))
    constants = [
        h.make_tensor("apart", TensorProto.INT64, [4], [0, 0, heads, width]),
        h.make_tensor("together", TensorProto.INT64, [3], [0, 0, heads * width]),
    ]
    graph = h.make_graph(nodes, "small", inputs, outputs, constants)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 23)], ir_version=10)


def test_a_small_graph_becomes_one_node() -> None:
    result = rewrite(small(), "triton")
    onnx.checker.check_model(result.model)
    (node,) = result.model.graph.node
    assert (
        node.op_type == "attention_2x40_fp16" and list(node.input) == ["q", "k", "v"] and list(node.output) == ["out"]
    )
    assert not result.model.graph.initializer
    (large,) = rewrite(small(), "triton", large=True).model.graph.node
    assert large.op_type == "attention_2x40_fp16_large"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 48}, "heads of 32, 40, 64, 80, 128, 160, not 48"),
        ({"attributes": {"is_causal": 1}}, "causal"),
        ({"attributes": {"scale": 0.1}}, "scale, cap or precision"),
        ({"attributes": {"softcap": 2.0}}, "scale, cap or precision"),
        ({"mask": True}, "mask"),
        ({"perm": [0, 2, 3, 1]}, "transposed another way"),
        ({"second": True}, "y is used elsewhere"),
    ],
)
def test_what_stays_native_and_why(changes: dict[str, Any], reason: str) -> None:
    model = small(**changes)
    result = rewrite(model, "triton")
    assert result.model == model and not result.plugins
    (why,) = result.kept.values()
    assert reason in why


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ValueError, match="attention is fast; it must be one of native, triton"):
        rewrite(small(), "fast")
