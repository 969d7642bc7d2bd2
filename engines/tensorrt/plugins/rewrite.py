"""Turns Attention nodes of a typed graph into nodes that TensorRT's ONNX parser takes for plugins.

torch exports attention as [n, t, heads d] -> Reshape -> Transpose -> Attention [n, heads, t, d] -> Transpose ->
Reshape. Our kernel reads and writes [n, t, heads d] as it is, so the five nodes around an Attention fall away with it.
The parser looks a node's type up as the name of a plugin, in the namespace of the attribute `plugin_namespace` (newer
ones in the node's domain also), and takes its ahead-of-time form where `aot` is 1. The type has to be nobody else's:
the parser ignores the domain where it knows an operator, or a function of the model, of that name. Everything that
distinguishes one plugin from another is in its name, because attributes reach a Python plugin as arrays of one, whose
conversion to a number numpy 2.4 refuses (TensorRT 10.15; repaired by 11.4).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kernels.plugins import NAMESPACE, Attention

ATTENTIONS = ("native", "triton")
_TYPES: dict[int, str] = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16", TensorProto.FLOAT: "fp32"}
_HEADS_FIRST = [0, 2, 1, 3]


@dataclass
class Rewritten:
    """A model, the plugins that it needs, and what became of each of its Attention nodes (by first output)."""

    model: ModelProto
    plugins: list[Attention] = field(default_factory=list)
    replaced: dict[str, str] = field(default_factory=dict)  # -> the plugin's name
    kept: dict[str, str] = field(default_factory=dict)  # -> why it is TensorRT's own


def rewrite(model: ModelProto, attention: str = "native", *, large: bool = False) -> Rewritten:
    """Return a copy whose Attention nodes are replaced where our kernel takes them; `large`: by plugins beyond 48 KB.

    Errors: ValueError for a word that is not one of ATTENTIONS.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"attention is {attention}; it must be one of {', '.join(ATTENTIONS)}")
    out = ModelProto()
    out.CopyFrom(model)
    result, graph = Rewritten(out), _Graph(out)
    for node in [node for node in out.graph.node if node.op_type == "Attention" and not node.domain]:
        name = node.output[0]
        if attention == "native":
            result.kept[name] = "native was asked for"
            continue
        try:
            plugin = graph.replace(node, large)
        except _KeptError as reason:
            result.kept[name] = str(reason)
            continue
        result.replaced[name] = plugin.name
        if plugin not in result.plugins:
            result.plugins.append(plugin)
    if result.replaced:
        _drop_unused(out)
        out.opset_import.append(helper.make_opsetid(NAMESPACE, 1))
    return result


class _KeptError(Exception):
    """An Attention stays as it is; the message says why."""


class _Graph:
    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.makers = {name: node for node in model.graph.node for name in node.output if name}
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        self.outputs = {value.name for value in model.graph.output}
        self.takers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)

    def replace(self, node: NodeProto, large: bool) -> Attention:
        _check_attributes(node)
        q, k, v = (self._tokens(name) for name in node.input[:3])
        if len({heads for _, heads, _ in (q, k, v)}) > 1 or len({width for _, _, width in (q, k, v)}) > 1:
            raise _KeptError("q, k and v differ in heads or width")
        kinds = {self._type(name) for name, _, _ in (q, k, v)}
        if len(kinds) > 1:
            raise _KeptError("q, k and v differ in type")
        _, heads, width = q
        plugin = Attention(heads, width, _TYPES.get(kinds.pop(), "another type"), large)
        if plugin.refusal:
            raise _KeptError(plugin.refusal)
        last = self._merged(node, self._type(q[0]))
        new = helper.make_node(
            plugin.name,
            [q[0], k[0], v[0]],
            [last.output[0]],
            name=node.name or node.output[0],
            domain=NAMESPACE,
            plugin_namespace=NAMESPACE,
            plugin_version="1",
            aot=1,
        )
        # Where the last Reshape stood: everything that it reads comes before, hence everything that the plugin reads.
        at = next(i for i, other in enumerate(self.graph.node) if other.output[:1] == last.output[:1])
        del self.graph.node[at]
        self.graph.node.insert(at, new)
        return plugin

    def _tokens(self, name: str) -> tuple[str, int, int]:
        """Find the tensor [n, t, heads d] that [n, heads, t, d] was made of; return its name, heads, d."""
        transpose = self._maker(self._before_cast(name), "Transpose")
        if list(helper.get_node_attr_value(transpose, "perm")) != _HEADS_FIRST:
            raise _KeptError(f"{name} is transposed another way")
        reshape = self._maker(self._before_cast(transpose.input[0]), "Reshape")
        heads, width = self._last_two(reshape.input[1])
        return self._before_cast(reshape.input[0]), heads, width

    def _merged(self, node: NodeProto, kind: int) -> NodeProto:
        """Find the Reshape that makes [n, t, heads d] of what `node` gives, in the type in which q came."""
        transpose = self._only_taker(node)
        if transpose.op_type == "Cast":
            transpose = self._only_taker(transpose)
        if transpose.op_type != "Transpose" or list(helper.get_node_attr_value(transpose, "perm")) != _HEADS_FIRST:
            raise _KeptError("its output is not transposed back")
        reshape = self._only_taker(transpose)
        if reshape.op_type != "Reshape":
            raise _KeptError("its heads are not merged")
        if self._type(reshape.output[0]) != kind:
            raise _KeptError("its output is of another type than its inputs")
        return reshape

    def _maker(self, name: str, op: str) -> NodeProto:
        node = self.makers.get(name)
        if node is None or node.op_type != op:
            raise _KeptError(f"{name} is not made by a {op}")
        return node

    def _only_taker(self, node: NodeProto) -> NodeProto:
        takers = self.takers.get(node.output[0], [])
        if len(takers) != 1 or node.output[0] in self.outputs:
            raise _KeptError(f"{node.output[0]} is used elsewhere")
        return takers[0]

    def _before_cast(self, name: str) -> str:
        """Return the tensor before it was widened: the kernel multiplies what it reads exactly and sums in float32."""
        node = self.makers.get(name)
        if node is None or node.op_type != "Cast" or helper.get_node_attr_value(node, "to") != TensorProto.FLOAT:
            return name
        narrow = self._type(node.input[0]) in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        return node.input[0] if narrow else name

    def _last_two(self, name: str) -> tuple[int, int]:
        """Return the last two numbers of a shape of four that a graph makes of constants and of sizes."""
        if name in self.initializers:
            values = numpy_helper.to_array(self.initializers[name])
        elif name in self.makers and self.makers[name].op_type == "Concat":
            parts = [self.initializers.get(part) for part in self.makers[name].input[-2:]]
            if any(part is None for part in parts):
                raise _KeptError("heads and width are not constants of the graph")
            values = [int(numpy_helper.to_array(part).item()) for part in parts if part is not None]
        else:
            raise _KeptError("heads and width are not constants of the graph")
        if len(values) < 2 or min(values[-2], values[-1]) < 1:
            raise _KeptError("heads and width are not constants of the graph")
        return int(values[-2]), int(values[-1])

    def _type(self, name: str) -> int:
        """Return a tensor's type in a strongly typed graph: that of the first input, from there back to a Cast."""
        while name in self.makers:
            node = self.makers[name]
            if node.op_type == "Cast":
                return helper.get_node_attr_value(node, "to")
            name = node.input[0]
        return self.initializers[name].data_type if name in self.initializers else self.inputs.get(name, 0)


def _check_attributes(node: NodeProto) -> None:
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if given.get("is_causal"):
        raise _KeptError("it is causal")
    if given.get("softcap") or "scale" in given or given.get("softmax_precision", TensorProto.FLOAT) != 1:
        raise _KeptError("it has a scale, cap or precision of its own")
    if "q_num_heads" in given or "kv_num_heads" in given:
        raise _KeptError("its heads are not a dimension")
    if any(node.input[3:]) or any(node.output[1:]) or len(node.input) < 3:
        raise _KeptError("it has a mask or keeps keys and values")


def _drop_unused(model: ModelProto) -> None:
    """Remove what nothing reads any more: nodes from the last to the first, then initializers."""
    graph = model.graph
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if any(uses[name] for name in node.output):
            kept.append(node)
        else:
            uses.subtract(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    tensors = [tensor for tensor in graph.initializer if uses[tensor.name] > 0]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
