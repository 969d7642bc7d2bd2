"""Makes a strongly typed graph of the artifact's float32 one: every operation computes in the type of its inputs.

TensorRT 11 and TensorRT for RTX know no other way: what a graph's tensors are is what is computed, so a type is a
property of the graph and can be asserted on it. Casts stand where two types meet. Weights stay where they lie, in the
checkpoint's own files and in the type that they have there; a cast after one is folded when the plan is built.
Inputs and outputs keep float32 (64 KB a latent: the sampler's update computes in it anyway), so that one runner and
one set of buffers serve every precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

OPSET = 23  # what export/graph.py writes
TYPES: dict[str, int] = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
NAMES: dict[int, str] = {code: name for name, code in TYPES.items()}
_FLOATS = {*TYPES.values(), TensorProto.DOUBLE}
# Operators that move numbers and compute none.
MOVES = {"Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
LARGEST = {"f16": 65504.0, "bf16": 3.3895e38, "f32": 3.4028e38}  # finite


def fix_shapes(model: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Make the inputs static, in place; outputs lose their symbols. Errors: ValueError for names or ranks."""
    inputs = {value.name: value for value in model.graph.input}
    if inputs.keys() != shapes.keys():
        raise ValueError(f"shapes name {sorted(shapes)}, the graph's inputs are {sorted(inputs)}")
    for name, shape in shapes.items():
        dims = inputs[name].type.tensor_type.shape.dim
        if len(dims) != len(shape):
            raise ValueError(f"{name} has {len(dims)} dimensions, its shape {shape}")
        for i, (dim, size) in enumerate(zip(dims, shape, strict=True)):
            if dim.HasField("dim_value") and dim.dim_value != size:
                raise ValueError(f"dimension {i} of {name} is {dim.dim_value}, not {size}")
            dim.dim_value = size
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()


def element_types(graph: GraphProto) -> dict[str, int]:
    """Return each tensor's element type (a TensorProto code).

    It follows from the operators' schemas; ONNX's own inference stops at GroupNormalization, which is a function to it.
    """
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        schema = _schema(node)
        for i, name in enumerate(node.output):
            formal = schema.outputs[min(i, len(schema.outputs) - 1)].type_str
            if node.op_type == "Shape":
                kinds[name] = TensorProto.INT64
            elif node.op_type == "Cast":
                kinds[name] = next(a.i for a in node.attribute if a.name == "to")
            elif formal.startswith("tensor("):
                kinds[name] = TensorProto.DataType.Value(formal[7:-1].upper())
            else:
                kinds[name] = next(
                    kinds[source] for k, source in enumerate(node.input) if source and _formal(schema, k) == formal
                )
    return kinds


def _schema(node: NodeProto) -> onnx.defs.OpSchema:
    return onnx.defs.get_schema(node.op_type, OPSET, node.domain)


def _formal(schema: onnx.defs.OpSchema, i: int) -> str:
    """Return the schema's name for the type of input `i`: "T1", say, or "tensor(float)"."""
    return schema.inputs[min(i, len(schema.inputs) - 1)].type_str


def stored_weights(graph: GraphProto) -> dict[str, str]:
    """Map the graph's name of a weight, a Cast, to the initializer that it reads as it lies in the checkpoint."""
    held = {tensor.name for tensor in graph.initializer}
    return {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast" and node.input[0] in held}


def sinusoids(graph: GraphProto) -> set[str]:
    """Return the outputs of the nodes that make angles and their waves, which stay float32 in every precision.

    float16 holds no timestep above 512 to better than a half: an angle of 999 radians would be off by a quarter.
    """
    makers = {output: node for node in graph.node for output in node.output}
    waves: set[str] = set()
    todo = [node.output[0] for node in graph.node if node.op_type in ("Sin", "Cos")]
    while todo:
        name = todo.pop()
        if name in makers and name not in waves:
            waves.add(name)
            todo += makers[name].input
    return waves


def float_inputs(node: NodeProto) -> Iterator[tuple[int, str]]:
    """Yield positions and names of inputs that follow the node's type; a Resize's scales, say, are always float32."""
    schema = _schema(node)
    for i, name in enumerate(node.input):
        if name and not _formal(schema, i).startswith("tensor("):
            yield i, name


def typed(model: ModelProto, base: str, islands: Mapping[str, str]) -> ModelProto:
    """Return a copy that computes in `base` ("f16", "bf16", "f32"), but in another type where `islands` says.

    `islands`: a node's first output -> its type. Inputs and outputs of the model keep their types.
    """
    out = ModelProto()
    out.CopyFrom(model)
    del out.graph.node[:]
    writer = _Writer(model, out.graph)
    waves = sinusoids(model.graph)
    for node in model.graph.node:
        if node.output[0] in writer.weights:
            continue  # written when it is used, in the types that its users have
        name = node.output[0]
        writer.add(node, TYPES["f32" if name in waves else islands.get(name, base)])
    used = {name for node in out.graph.node for name in node.input}
    kept = [tensor for tensor in out.graph.initializer if tensor.name in used]
    del out.graph.initializer[:]
    out.graph.initializer.extend(kept)
    return out


@dataclass
class _Writer:
    model: ModelProto
    graph: GraphProto
    weights: dict[str, str] = field(init=False)
    _held: dict[tuple[str, int], str] = field(default_factory=dict)  # a tensor in a type -> the name it has there
    _type: dict[str, int] = field(default_factory=dict)  # the type in which a tensor was made

    def __post_init__(self) -> None:
        self.weights = stored_weights(self.model.graph)
        self._type = element_types(self.model.graph)
        self._outputs = {value.name for value in self.model.graph.output}

    def add(self, node: NodeProto, kind: int) -> None:
        """Write `node` computing in `kind`, with the casts that its inputs need."""
        new = NodeProto()
        new.CopyFrom(node)
        if node.op_type == "Cast" and self._type[node.output[0]] in _FLOATS:
            next(a for a in new.attribute if a.name == "to").i = kind
        elif node.op_type != "Cast":
            for i, name in float_inputs(node):
                if self._type[name] in _FLOATS:
                    new.input[i] = self._as(name, kind)
        floats = [name for name in node.output if name and self._type[name] in _FLOATS]
        leaving = [name for name in floats if name in self._outputs and kind != TensorProto.FLOAT]
        for i, name in enumerate(new.output):
            if name in leaving:
                new.output[i] = f"{name}.{NAMES[kind]}"
        self.graph.node.append(new)
        for name in floats:
            self._type[name] = kind
        for name in leaving:  # what follows inside reads the narrow one
            narrow = f"{name}.{NAMES[kind]}"
            self.graph.node.append(helper.make_node("Cast", [narrow], [name], name=f"{name}.out", to=TensorProto.FLOAT))
            self._held[name, kind] = narrow

    def _as(self, name: str, kind: int) -> str:
        if (name, kind) in self._held:
            return self._held[name, kind]
        source = self.weights.get(name, name)
        if self._type[source] == kind:
            self._held[name, kind] = source
            return source
        cast = f"{name}.as_{NAMES[kind]}"
        self.graph.node.append(helper.make_node("Cast", [source], [cast], name=cast, to=kind))
        self._held[name, kind] = cast
        return cast
