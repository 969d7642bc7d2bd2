"""Computes a typed graph on the CPU in float32; each narrow tensor is rounded to its type, or to infinity.

Attention is taken apart, as a compiler without a fused kernel for it would: its products are tensors too. So this is
the most rounding that a typed graph asks for; a kernel that accumulates in float32 and keeps more to itself rounds
less. No card computed any of it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from engines.tensorrt.types.graph_run import Feeds, run_graph
from engines.tensorrt.types.typed import MOVES, element_types

_NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_MASKED = -1e30  # a logit that a causal mask takes away: exp of it is 0


def emulate(model: ModelProto, folder: Path, feeds: list[Feeds]) -> list[dict[str, NDArray[Any]]]:
    """Return the outputs of a typed graph for each of `feeds`."""
    return list(run_graph(emulation(model).SerializeToString(), folder, feeds))


def largest_error(got: list[dict[str, NDArray[Any]]], wanted: list[dict[str, NDArray[Any]]]) -> float:
    """Return the largest difference over the largest absolute value wanted; infinite where anything is not finite."""
    worst = 0.0
    for mine, theirs in zip(got, wanted, strict=True):
        for name, value in theirs.items():
            if not np.isfinite(mine[name]).all():
                return math.inf
            worst = max(worst, float(np.abs(mine[name] - value).max() / np.abs(value).max()))
    return worst


def emulation(model: ModelProto) -> ModelProto:
    """Return the float32 graph that rounds as the typed `model` does."""
    out = ModelProto()
    out.CopyFrom(model)
    del out.graph.node[:]
    _Rounding(model, out).write()
    return out


class _Rounding:
    """The writer of the float32 graph: a tensor that is narrow in the typed one keeps its name, and narrow values."""

    def __init__(self, model: ModelProto, out: ModelProto) -> None:
        self._model, self._nodes, self._initializers = model, out.graph.node, out.graph.initializer
        self._kinds = element_types(model.graph)
        self._wide: dict[str, str] = {}  # a narrow initializer -> itself in float32

    def write(self) -> None:
        for tensor in self._model.graph.initializer:
            if tensor.data_type in _NARROW:
                self._wide[tensor.name] = f"{tensor.name}.wide"
                self._cast(tensor.name, f"{tensor.name}.wide", TensorProto.FLOAT)
        for node in self._model.graph.node:
            self._write(node)

    def _write(self, node: NodeProto) -> None:
        kind = self._kinds[node.output[0]]
        new = NodeProto()
        new.CopyFrom(node)
        for i, name in enumerate(node.input):
            new.input[i] = self._wide.get(name, name)
        if node.op_type == "Cast" and kind in _NARROW:
            self._round(new.input[0], node.output[0], kind)
        elif kind in _NARROW and node.op_type == "Attention":
            self._attention(new, kind)
        else:
            narrow = [i for i, name in enumerate(node.output) if self._kinds[name] in _NARROW]
            narrow = [] if node.op_type in MOVES else narrow  # what it moves has been rounded
            for i in narrow:
                new.output[i] = f"{node.output[i]}.raw"
            self._nodes.append(new)
            for i in narrow:
                self._round(new.output[i], node.output[i], kind)

    def _attention(self, node: NodeProto, kind: int) -> None:
        """Write softmax(q k^T / sqrt(d)) v on [n, heads, t, d], with q and k scaled by the root each, as ONNX says."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        (q, k, v), out = node.input[:3], node.output[0]
        assert len(node.input) == 3 and len(node.output) == 1, "a mask, a past or a second output"
        root = self._root(out, q, attributes.get("scale"))
        for name, source in (("q", q), ("k", k)):
            self._add("Mul", [source, root], f"{out}.{name}.raw")
            self._round(f"{out}.{name}.raw", f"{out}.{name}", kind)
        self._add("Transpose", [f"{out}.k"], f"{out}.kt", perm=[0, 1, 3, 2])
        self._add("MatMul", [f"{out}.q", f"{out}.kt"], f"{out}.logits.raw")
        self._round(f"{out}.logits.raw", f"{out}.logits", kind)
        logits = f"{out}.logits"
        if attributes.get("is_causal"):
            self._mask(logits, f"{out}.masked")
            logits = f"{out}.masked"
        self._add("Softmax", [logits], f"{out}.shares.raw", axis=-1)
        self._round(f"{out}.shares.raw", f"{out}.shares", kind)
        self._add("MatMul", [f"{out}.shares", v], f"{out}.raw")
        self._round(f"{out}.raw", out, kind)

    def _root(self, out: str, q: str, scale: float | None) -> str:
        """Return the square root of the scale, d^-1/4 where none is given, as a tensor."""
        if scale is not None:
            return self._constant(f"{out}.root", TensorProto.FLOAT, math.sqrt(scale))
        self._add("Shape", [q], f"{out}.d.int", start=3)
        self._cast(f"{out}.d.int", f"{out}.d", TensorProto.FLOAT)
        self._add("Pow", [f"{out}.d", self._constant(f"{out}.power", TensorProto.FLOAT, -0.25)], f"{out}.root")
        return f"{out}.root"

    def _mask(self, logits: str, masked: str) -> None:
        """Mask logits so that token i attends to tokens up to itself."""
        low = helper.make_tensor("value", TensorProto.FLOAT, [1], [_MASKED])
        self._add("Shape", [logits], f"{masked}.sides", start=2)
        self._add("ConstantOfShape", [f"{masked}.sides"], f"{masked}.all", value=low)
        self._add("Trilu", [f"{masked}.all", self._constant(f"{masked}.one", TensorProto.INT64, 1)], f"{masked}.above")
        self._add("Add", [logits, f"{masked}.above"], masked)

    def _constant(self, name: str, kind: int, value: float) -> str:
        self._initializers.append(helper.make_tensor(name, kind, [], [value]))
        return name

    def _round(self, source: str, target: str, kind: int) -> None:
        self._cast(source, f"{target}.narrow", kind)
        self._cast(f"{target}.narrow", target, TensorProto.FLOAT)

    def _cast(self, source: str, target: str, kind: int) -> None:
        self._add("Cast", [source], target, to=kind)

    def _add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self._nodes.append(helper.make_node(op, inputs, [output], **attributes))
