"""Reads and rewrites ONNX models in their protobuf itself: a server has no onnx.

In a graph of ours every weight is an input. **A weight's name has a dot** ("conv_in.weight"): it is the path of a
parameter below the network, and no network has one of its own. A true input's name ("sample") has none. tests/graphs
keeps both. Every function here raises ValueError for bytes that are cut short or damaged in what it reads.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

# onnx.proto3 of onnx 1.23: which fields of which message hold which message, as far as tensors lie below.
_FIELDS = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},  # external_data: of each entry 1 is the key, 2 the value
}
_DEEPEST = 64  # messages within messages
MODEL_GRAPH, _MODEL_OPSET = 7, 8
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, _NODE_INPUT = 1, 5, 11, 1
_FLOAT = 1
_TYPES = {_FLOAT: "float32", 6: "int32", 7: "int64", 10: "float16", 11: "float64", 16: "bfloat16"}

_Field = tuple[int, "memoryview | int", memoryview]  # number, value, and the field's bytes, key included


class Port(NamedTuple):
    """An input of a graph."""

    name: str
    dtype: str  # "float32", "int64", ...
    dims: tuple[int | None, ...]  # None: any


def weights(model: bytes) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight that a graph takes, by name, in the graph's order."""
    return dict(_shapes(model))


# A load reads each graph five times: to see that it is whole, to compare it with the weights, and to bind them. For SD
# 1.5's UNet that is 38 ms each, during which nothing else of this process runs for long.
@functools.lru_cache(maxsize=8)
def _shapes(model: bytes) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((port.name, _fixed(port)) for port in _inputs(parts(model)[1]) if _is_weight(port.name))


def idle(model: bytes) -> set[str]:
    """Return the weights that no node takes: a checkpoint has them, as SDXL's first text tower has a last layer."""
    nodes = (value for number, value in messages(parts(model)[1]) if number == GRAPH_NODE)
    taken = {bytes(value).decode() for node in nodes for number, value in messages(node) if number == _NODE_INPUT}
    return weights(model).keys() - taken


def ports(model: bytes) -> tuple[Port, ...]:
    """Return the true inputs of a graph: what varies from call to call."""
    return tuple(port for port in _inputs(parts(model)[1]) if not _is_weight(port.name))


def with_initializers(model: bytes, location: str = "weights") -> bytes:
    """Return the graph with each weight as a float32 initializer with external data at `location`, no longer an input.

    No such file needs to be there: the values come from memory, by ONNX Runtime's add_external_initializers.
    """
    around, graph = parts(model)
    _inputs(graph)  # each has a name of its own
    kept, initializers = [], []
    for number, value, raw in fields(graph):
        if number == GRAPH_INPUT and _is_weight((port := _port(submessage(value))).name):
            initializers.append(wrapped(GRAPH_INITIALIZER, _external(port, location)))
        else:
            kept.append(bytes(raw))
    return b"".join((*around, wrapped(MODEL_GRAPH, b"".join((*kept, *initializers)))))


def external_files(model: bytes) -> set[str]:
    """Return the `location` of every tensor with external data in a serialised ModelProto.

    A graph may name any file of the machine; only those that a manifest vouches for may be opened for it.
    """
    locations: set[str] = set()
    waiting = [("Model", memoryview(model), 0)]
    while waiting:
        kind, message, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError(f"its messages are nested more than {_DEEPEST} deep")
        if kind == "Entry":
            entry = {number: bytes(value) for number, value in messages(message)}
            if entry.get(1) == b"location":
                locations.add(entry.get(2, b"").decode())
            continue
        inner = _FIELDS[kind]
        waiting += [(inner[number], value, depth + 1) for number, value in messages(message) if number in inner]
    return locations


def _is_weight(name: str) -> bool:
    return "." in name


def parts(model: bytes) -> tuple[list[bytes], memoryview]:
    """Return the fields around the one graph of a model, and the graph."""
    around, graphs, numbers = [], [], set()
    for number, value, raw in fields(memoryview(model)):
        numbers.add(number)
        if number == MODEL_GRAPH:
            graphs.append(submessage(value))
        else:
            around.append(bytes(raw))
    if len(graphs) != 1 or _MODEL_OPSET not in numbers:  # operator sets come last
        raise ValueError(f"it is cut short, or no model: {len(graphs)} graphs and {len(numbers)} kinds of fields")
    return around, graphs[0]


def _inputs(graph: memoryview) -> list[Port]:
    inputs = [_port(value) for number, value in messages(graph) if number == GRAPH_INPUT]
    if len({port.name for port in inputs}) != len(inputs) or not inputs:
        raise ValueError("its inputs have no names of their own")
    return inputs


def _port(info: memoryview) -> Port:
    """Read a ValueInfoProto of a tensor: 1 is its name, 2 its type, and therein 1 a tensor's."""
    entries = dict(messages(info))
    name = bytes(entries.get(1, b"")).decode()
    tensor = dict(messages(entries.get(2, memoryview(b"")))).get(1, memoryview(b""))
    elements = [value for number, value, _ in fields(tensor) if number == 1]
    shapes = [value for number, value in messages(tensor) if number == 2]
    if not name or len(elements) != 1 or elements[0] not in _TYPES or len(shapes) != 1:
        raise ValueError(f"its input {name[:80]!r} has no name, or no type that is known, or no shape")
    dims = tuple(_dim(value) for number, value in messages(shapes[0]) if number == 1)
    return Port(name, _TYPES[int(elements[0])], dims)


def _dim(dimension: memoryview) -> int | None:
    """Read a Dimension: 1 is its size, 2 the name of one that varies."""
    values = {number: value for number, value, _ in fields(dimension)}
    size = values.get(1)
    if size is None:
        return None
    if not isinstance(size, int) or size >= 1 << 31:
        raise ValueError("an input has a side that is no size")
    return size


def _fixed(port: Port) -> tuple[int, ...]:
    shape = tuple(side for side in port.dims if side is not None)
    if len(shape) != len(port.dims) or port.dtype != "float32":
        raise ValueError(f"its weight {port.name[:80]!r} is {port.dtype} {list(port.dims)}, not float32 of one shape")
    return shape


def _external(port: Port, location: str) -> bytes:
    """Write a TensorProto: 1 are its dims, 2 its type, 8 its name, 13 says where its data lies, 14 that it is there."""
    dims = b"".join(b"\x08" + varint(side) for side in _fixed(port))
    entries = (("location", location), ("offset", "0"), ("length", "0"))
    places = (wrapped(13, wrapped(1, key.encode()) + wrapped(2, value.encode())) for key, value in entries)
    return b"".join((dims, b"\x10", varint(_FLOAT), wrapped(8, port.name.encode()), *places, b"\x70\x01"))


def wrapped(field: int, message: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(message)) + message


def varint(value: int) -> bytes:
    """Write a varint."""
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes((*data, value))


def submessage(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def messages(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and bytes of each field that has a length."""
    return ((number, value) for number, value, _ in fields(message) if not isinstance(value, int))


def fields(message: memoryview) -> Iterator[_Field]:
    """Yield every field in order. Of a fixed-size number, which nothing here reads, the value is 0."""
    at, end = 0, len(message)
    while at < end:
        start = at
        key, at = _read_varint(message, at)
        kind, value = key & 7, 0
        if kind == 0:
            value, at = _read_varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _read_varint(message, at)
            value = message[at : at + length]
            at += length
        else:
            raise ValueError(f"a field of kind {kind} at byte {at}")
        if at > end:
            break
        yield key >> 3, value, message[start:at]
    if at != end:
        raise ValueError("it is cut short")


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("it is cut short")
