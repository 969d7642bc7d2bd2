"""Measures the largest magnitude that each tensor of a graph takes, which decides where float16 is too narrow.

The float32 graph runs on the CPU with two reductions beside every tensor, so that nothing but two numbers of each is
kept. What attention computes inside (q k^T / sqrt(d), before the softmax) is in no tensor; by Cauchy and Schwarz it is
at most the longest query times the longest key, and that costs no quadratic memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from engines.errors import BackendError
from engines.tensorrt.types.graph_run import Feeds, run_graph
from engines.tensorrt.types.typed import MOVES, element_types, stored_weights


@dataclass
class Ranges:
    """The largest magnitudes over all runs."""

    tensors: dict[str, float] = field(default_factory=dict)  # by name; of weights those that are not stored in float16
    stored: set[str] = field(default_factory=set)  # of these the weights that lie in the checkpoint in float32
    logits: dict[str, float] = field(default_factory=dict)  # bounds, by the attention's output
    outputs: list[dict[str, NDArray[Any]]] = field(default_factory=list)  # of each run: the reference


def measure(model: ModelProto, folder: Path, feeds: Sequence[Feeds]) -> Ranges:
    """Run the float32 graph on `feeds`. Errors: BackendError where float32 itself overflows."""
    kinds = element_types(model.graph)
    probed = ModelProto()
    probed.CopyFrom(model)
    graph = probed.graph
    floats = [name for name, kind in kinds.items() if kind == TensorProto.FLOAT and name not in _left_out(model, kinds)]
    for name in floats:
        for how in ("Max", "Min"):
            _probe(probed, f"Reduce{how}", [name], f"{name}.{how}", TensorProto.FLOAT, keepdims=0)
    attentions = [node for node in model.graph.node if node.op_type == "Attention"]
    for node in attentions:
        for i in (0, 1):
            long = f"{node.output[0]}.{i}.long"
            graph.node.append(_axis(graph, node.input[i], long))
            _probe(probed, "ReduceMax", [long], f"{long}.Max", TensorProto.FLOAT, keepdims=0)
        _probe(probed, "Shape", [node.input[0]], f"{node.output[0]}.shape", TensorProto.INT64)

    stored = {tensor.name for tensor in model.graph.initializer if tensor.name in floats}
    ranges, outputs = Ranges(stored=stored), [value.name for value in model.graph.output]
    for got in run_graph(probed.SerializeToString(), folder, feeds):
        ranges.outputs.append({name: got[name] for name in outputs})
        for name in floats:
            largest = max(float(got[f"{name}.Max"]), -float(got[f"{name}.Min"]))
            if not math.isfinite(largest):
                raise BackendError(f"{name} is {largest} in float32: the weights in {folder} are damaged")
            ranges.tensors[name] = max(largest, ranges.tensors.get(name, 0.0))
        for node in attentions:
            name = node.output[0]
            longest = [float(got[f"{name}.{i}.long.Max"]) for i in (0, 1)]
            bound = longest[0] * longest[1] * _scale(node, got[f"{name}.shape"])
            ranges.logits[name] = max(bound, ranges.logits.get(name, 0.0))
    for node in model.graph.node:
        if node.op_type in MOVES:
            largest = max((ranges.tensors.get(name, 0.0) for name in node.input), default=0.0)
            ranges.tensors |= {name: largest for name in node.output if kinds[name] == TensorProto.FLOAT}
    return ranges


def _left_out(model: ModelProto, kinds: dict[str, int]) -> set[str]:
    """Return the tensors that are not worth two reductions: hundreds of them cost more to load than to run.

    These are constants with their values in the graph (scales of a Resize, frequencies); weights that lie in the
    checkpoint in float16, since they fit; and what only moves values, since its range is that of what it moves.
    """
    held = {tensor.name for tensor in model.graph.initializer if tensor.data_location != TensorProto.EXTERNAL}
    for name, source in stored_weights(model.graph).items():
        if kinds[source] == TensorProto.FLOAT16:
            held.add(name)
    return held | {name for node in model.graph.node if node.op_type in MOVES for name in node.output}


def _probe(model: ModelProto, op: str, inputs: list[str], output: str, kind: int, **attributes: Any) -> None:
    model.graph.node.append(helper.make_node(op, inputs, [output], **attributes))
    model.graph.output.append(helper.make_tensor_value_info(output, kind, None))


def _axis(graph: Any, name: str, output: str) -> NodeProto:
    """Make a node for the length of each query or key: [n, heads, t, d] -> [n, heads, t, 1]."""
    last = helper.make_tensor(f"{output}.axis", TensorProto.INT64, [1], [-1])
    graph.initializer.append(last)
    return helper.make_node("ReduceL2", [name, last.name], [output])


def _scale(node: NodeProto, shape: NDArray[np.int64]) -> float:
    """Return what an Attention node multiplies its products by: its attribute, else 1 / sqrt(d)."""
    for attribute in node.attribute:
        if attribute.name == "scale":
            return attribute.f
    return 1 / math.sqrt(int(shape[-1]))
