"""Doubles of our plugins that ONNX Runtime can run."""

from __future__ import annotations

import onnx
from onnx import NodeProto, TensorProto, helper

from kernels.plugins import NAMESPACE


def body(name: str, heads: int, width: int) -> onnx.FunctionProto:
    """A plugin as an ONNX function: a double that ONNX Runtime can run."""

    def shape(output: str, dims: list[int]) -> NodeProto:
        return helper.make_node(
            "Constant", [], [output], value=helper.make_tensor(output, TensorProto.INT64, [len(dims)], dims)
        )

    nodes = [shape("apart", [0, 0, heads, width]), shape("together", [0, 0, heads * width])]
    for x in "qkv":
        nodes += [
            helper.make_node("Reshape", [x, "apart"], [f"{x}4"]),
            helper.make_node("Transpose", [f"{x}4"], [f"{x}t"], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        helper.make_node("Attention", ["qt", "kt", "vt"], ["y"]),
        helper.make_node("Transpose", ["y"], ["yt"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["yt", "together"], ["out"]),
    ]
    names = ["plugin_namespace", "plugin_version", "aot"]
    return helper.make_function(
        NAMESPACE, name, ["q", "k", "v"], ["out"], nodes, [helper.make_opsetid("", 23)], attributes=names
    )
