"""A network as an ONNX graph that copies no weights.

torch traces the network (opset 23: Attention and GroupNormalization stay single nodes), with rows, sides and
context length dynamic. Each parameter then becomes external data that points into the checkpoint's safetensors
file, in the type that it has there, with a Cast to float32 where that type is another. While the graph is being
tidied the parameters are inputs, so that no constant folding can make a copy of one.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from onnxscript import ir, optimizer
from torch import Tensor, nn
from torch.export import Dim

from pipeline.checkpoint.header import StoredTensor
from pipeline.errors import CheckpointError

OPSET = 23
_TYPES = {"F64": TensorProto.DOUBLE, "F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Port:
    """An input: its name, an example, and the names of its dynamic dimensions by position."""

    name: str
    example: Tensor
    dynamic: dict[int, Dim | int]


def trace(
    net: nn.Module, inputs: list[Port], outputs: list[str], stored: dict[str, StoredTensor], folder: Path
) -> bytes:
    """The ONNX model of `net`, serialised, to be written into `folder`.

    `stored` says where each parameter lies; the files must be in `folder` or below it, because every reader of
    external data refuses `..` and links. Errors: CheckpointError for a parameter stored in a type that ONNX lacks.
    """
    with _quiet():
        program = torch.onnx.export(
            net,
            tuple(port.example for port in inputs),
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            input_names=[port.name for port in inputs],
            output_names=outputs,
            dynamic_shapes=tuple(port.dynamic for port in inputs),
            verbose=False,
        )
    assert program is not None
    model = program.model
    parameters = {name for name, _ in net.named_parameters()}
    values = [model.graph.initializers.pop(name) for name in list(model.graph.initializers) if name in parameters]
    for value in values:
        value.const_value = None
        model.graph.inputs.append(value)
    optimizer.optimize(model)
    proto = ir.serde.serialize_model(model)
    _point(proto, parameters, stored, folder)
    _strip(proto)
    return proto.SerializeToString(deterministic=True)


def _point(proto: onnx.ModelProto, parameters: set[str], stored: dict[str, StoredTensor], folder: Path) -> None:
    """Turn the inputs that are parameters into external data."""
    graph = proto.graph
    inputs = [value for value in graph.input if value.name not in parameters]
    named = [value.name for value in graph.input if value.name in parameters]
    used = {name for node in graph.node for name in node.input}
    casts = []
    for name in named:
        if name not in used:
            continue
        tensor = stored[name]
        if tensor.dtype not in _TYPES:
            raise CheckpointError(
                f"{tensor.path}: {name} is stored as {tensor.dtype}; latentd takes {', '.join(_TYPES)}"
            )
        kind = _TYPES[tensor.dtype]
        own = name if kind == TensorProto.FLOAT else f"{name}.{tensor.dtype.lower()}"
        # The shape is the network's: an old VAE stores some matrices as 1x1 convolutions, with the same bytes.
        shape = next(v.type.tensor_type.shape for v in graph.input if v.name == name)
        entry = TensorProto(name=own, data_type=kind, dims=[d.dim_value for d in shape.dim])
        entry.data_location = TensorProto.EXTERNAL
        location = tensor.path.relative_to(folder).as_posix()
        for key, value in (("location", location), ("offset", tensor.offset), ("length", tensor.length)):
            entry.external_data.add(key=key, value=str(value))
        graph.initializer.append(entry)
        if own != name:
            casts.append(helper.make_node("Cast", [own], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    del graph.input[:]
    graph.input.extend(inputs)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _strip(proto: onnx.ModelProto) -> None:
    """Drop what the tracer notes about the machine (source paths), so that equal models give equal bytes."""
    del proto.metadata_props[:]
    proto.graph.doc_string = proto.doc_string = ""
    del proto.graph.metadata_props[:]
    del proto.graph.value_info[:]
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    proto.producer_name, proto.producer_version = "latentd", ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns of a missing torchvision, neither of which a user can act on."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
