"""Makes what `make trt-check` runs: small graphs, their inputs, and what should come out, each with its tolerance."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from engines.artifact.opened import Artifact
from engines.choice import Choice
from engines.model import load
from engines.tensorrt.plugins.rewrite import rewrite
from engines.tensorrt.types.typed import fix_shapes, typed
from graphs import ports
from kernels.plugins import NAMESPACE, AddOne, Source
from pipeline.checkpoint.opened import open_checkpoint

# SD 1.5's first level at 128x128 pixels: 8 heads of 40, 256 positions, 77 text tokens. Ragged in the kernel's tiles.
ROWS, POSITIONS, TOKENS, HEADS, WIDTH = 2, 256, 77, 8, 40


@dataclass
class Case:
    """A model with static shapes, inputs, and the output expected of it; `tolerance` is of max |output - expected|."""

    model: ModelProto
    inputs: dict[str, np.ndarray]
    expected: np.ndarray
    tolerance: float
    path: Path | None = None  # of the graph, where weights lie beside it
    plugins: list[Source] = field(default_factory=list)


def add_one() -> Case:
    x = np.arange(-1000, 1000, dtype=np.float16).reshape(2, 1000)
    source = AddOne("fp16")
    attributes: dict[str, Any] = {"plugin_namespace": NAMESPACE, "plugin_version": "1", "aot": 1}
    node = helper.make_node(source.name, ["x"], ["out"], name="add_one", domain=NAMESPACE, **attributes)
    # Whole numbers up to 2048 are exact in fp16.
    return Case(_model([node], {"x": x}, x.shape), {"x": x}, (x + 1).astype(np.float64), 0.0, plugins=[source])


def attention(kind: str, *, large: bool = False) -> Case:
    """Make queries of a picture attend to keys and values of a text. kind: "native" or "triton"."""
    random = np.random.default_rng(0)
    inputs = {
        name: random.standard_normal((ROWS, length, HEADS * WIDTH)).astype(np.float16)
        for name, length in (("q", POSITIONS), ("k", TOKENS), ("v", TOKENS))
    }
    model = _model(_heads("q", "k", "v", "out"), inputs, inputs["q"].shape)
    expected = _attend(*(x.astype(np.float64) for x in inputs.values()))
    # fp16 rounds an output up to 4 by 2e-3, and each weight by 2^-11 of itself.
    return _rewritten(Case(model, inputs, expected, 4e-3), kind, large)


def block(kind: str) -> Case:
    """Make the self-attention of a transformer block: normalise, project, attend, project, add."""
    random = np.random.default_rng(1)
    width = HEADS * WIDTH
    x = random.standard_normal((ROWS, POSITIONS, width)).astype(np.float16)
    weights = {
        name: (random.standard_normal((width, width)) / width**0.5).astype(np.float16)
        for name in ("wq", "wk", "wv", "wo")
    }
    ones = {"gain": np.ones(width, np.float16), "bias": np.zeros(width, np.float16)}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "bias"], ["y"], axis=-1, epsilon=1e-5),
        *(helper.make_node("MatMul", ["y", f"w{i}"], [i]) for i in "qkv"),
        *_heads("q", "k", "v", "a"),
        helper.make_node("MatMul", ["a", "wo"], ["o"]),
        helper.make_node("Add", ["x", "o"], ["out"]),
    ]
    model = _model(nodes, {"x": x}, x.shape, weights | ones)
    wide, w = x.astype(np.float64), {name: value.astype(np.float64) for name, value in weights.items()}
    y = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    expected = wide + _attend(y @ w["wq"], y @ w["wk"], y @ w["wv"]) @ w["wo"]
    # Five roundings to fp16 on the way, of values up to 5 (half a unit is 2e-3 there).
    return _rewritten(Case(model, {"x": x}, expected, 1e-2), kind, False)


def unet(kind: str, artifact: Artifact) -> Case:
    """Make a model's whole UNet in fp16 at its default size, two rows, against torch in float32 on the CPU."""
    spec, random = artifact.spec, np.random.default_rng(2)
    size = spec.defaults.width, spec.defaults.height
    chosen = {"timestep": np.asarray([1, 999], np.float32), "guidance": np.asarray([1.0, 7.5], np.float32)}
    inputs = {
        name: chosen[name] if name in chosen else random.standard_normal(shape).astype(np.float32)
        for name, shape in ports.shapes("unet", spec, ports.sides(spec, *size, rows=2)).items()
    }
    oracle = load(open_checkpoint(artifact.folder), Choice("torch", device="cpu")).backend.denoiser(*size, 2)
    oracle.samples[:], oracle.timesteps[:] = inputs["sample"], inputs["timestep"]
    oracle.contexts[:], oracle.guidance[:] = inputs["context"], inputs.get("guidance", oracle.guidance)
    oracle.run([0, 1])
    expected = oracle.outputs.copy()
    path = artifact.graph("unet")
    model = onnx.load(path, load_external_data=False)
    fix_shapes(model, {name: value.shape for name, value in inputs.items()})
    # About a hundred layers round to 11 bits each: sqrt(100) 2^-11 is half a percent, four times that is a fault.
    case = Case(typed(model, "f16", {}), inputs, expected, 0.02 * float(np.abs(expected).max()), path)
    return _rewritten(case, kind, False)


def _rewritten(case: Case, kind: str, large: bool) -> Case:
    result = rewrite(case.model, kind, large=large)
    if kind == "triton" and not result.plugins:
        raise ValueError(
            f"no attention here is one that the kernel takes: {'; '.join(sorted(set(result.kept.values())))}"
        )
    case.model, case.plugins = result.model, [*result.plugins]
    return case


def _heads(q: str, k: str, v: str, out: str) -> list[NodeProto]:
    """Make the nodes of an attention over [n, t, heads width], as torch exports it."""
    nodes = []
    for x in (q, k, v):
        nodes += [
            helper.make_node("Reshape", [x, "apart"], [f"{x}.apart"]),
            helper.make_node("Transpose", [f"{x}.apart"], [f"{x}.heads"], perm=[0, 2, 1, 3]),
        ]
    return [
        *nodes,
        helper.make_node("Attention", [f"{x}.heads" for x in (q, k, v)], [f"{out}.heads"], name="attention"),
        helper.make_node("Transpose", [f"{out}.heads"], [f"{out}.apart"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [f"{out}.apart", "together"], [out]),
    ]


def _model(
    nodes: list[NodeProto],
    inputs: dict[str, np.ndarray],
    shape: tuple[int, ...],
    weights: dict[str, np.ndarray] | None = None,
) -> ModelProto:
    constants = dict(weights or {})
    if any(node.op_type == "Attention" for node in nodes):
        constants["apart"] = np.asarray([0, 0, HEADS, WIDTH], np.int64)
        constants["together"] = np.asarray([0, 0, HEADS * WIDTH], np.int64)
    graph = helper.make_graph(
        nodes,
        "rung",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, value.shape) for name, value in inputs.items()],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT16, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    domains = sorted({node.domain for node in nodes if node.domain})
    opsets = [helper.make_opsetid("", 23), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Compute attention by its formula, in float64: [n, t, c] and two [n, s, c] -> [n, t, c]."""
    q, k, v = (x.reshape(*x.shape[:2], HEADS, WIDTH).swapaxes(1, 2) for x in (q, k, v))
    scores = q @ k.swapaxes(2, 3) / WIDTH**0.5
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return out.swapaxes(1, 2).reshape(out.shape[0], -1, HEADS * WIDTH)
