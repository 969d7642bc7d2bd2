"""Points a graph at the weights in a checkpoint's files, so that TensorRT and ONNX readers open it by its path."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from pipeline.checkpoint.header import StoredTensor

_TYPES = {"F64": TensorProto.DOUBLE, "F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}


def point(model: onnx.ModelProto, stored: dict[str, StoredTensor], folder: Path) -> None:
    """Turn each input that is a weight (graphs/wire.py: its name has a dot) into external data, in place.

    A weight has the type that it is stored in, with a Cast to float32 where that is another. `stored` says where each
    lies; the files must be in `folder`, where the model will be written, or below it, because every reader of external
    data refuses `..` and links.
    """
    graph = model.graph
    inputs = [value for value in graph.input if "." not in value.name]
    used = {name for node in graph.node for name in node.input}
    casts = []
    for weight in graph.input:
        name = weight.name
        if "." not in name or name not in used:
            continue
        tensor = stored[name]
        kind = _TYPES[tensor.dtype]
        stored_name = name if kind == TensorProto.FLOAT else f"{name}.{tensor.dtype.lower()}"
        # The shape is the network's: an old VAE stores some matrices as 1x1 convolutions, with the same bytes.
        dims = [dim.dim_value for dim in weight.type.tensor_type.shape.dim]
        entry = TensorProto(name=stored_name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
        location = tensor.path.relative_to(folder).as_posix()
        for key, value in (("location", location), ("offset", tensor.offset), ("length", tensor.length)):
            entry.external_data.add(key=key, value=str(value))
        graph.initializer.append(entry)
        if stored_name != name:
            casts.append(helper.make_node("Cast", [stored_name], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.input[:], graph.node[:]
    graph.input.extend(inputs)
    graph.node.extend(nodes)
