"""A graph that takes LoRAs, from one without: beside a layer's x W^T stands x A^T B^T, or x (W + B A)^T in its place.

A and B are inputs, a pair a layer (ports.adapters), with a row of their own for each row of the batch. So a LoRA is
data, and another one needs no other graph. It is written into the protobuf itself, as a server has no onnx, and nothing
more ships. A row of zeros computes what the graph did before, up to the rounding of what a compiler fuses.

Where a layer sees many positions, W + B A is the cheaper one (pipeline.loras.layers.merged).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from graphs.ports import Port
from graphs.wire import (
    GRAPH_INITIALIZER,
    GRAPH_INPUT,
    GRAPH_NODE,
    MODEL_GRAPH,
    fields,
    messages,
    parts,
    submessage,
    varint,
    weights,
    wrapped,
)

_FLAT = "adapters flat"  # of the one constant: the shape [rows, channels, positions] of a picture's positions
_FLOAT, _INT64, _INTS = 1, 7, 7  # types of tensors, and of an attribute that is a list of integers


@dataclass
class _Node:
    """An operation: what it is, what goes in and comes out, and its bytes."""

    kind: str
    inputs: list[str]
    outputs: list[str]
    raw: memoryview
    after: list[bytes] = field(default_factory=list)  # nodes that follow it


def with_adapters(model: bytes, ports: Sequence[Port], merged: Collection[str] = ()) -> bytes:
    """Return the graph with the inputs `ports`, pairs as ports.adapters lists them.

    Layers of `merged` add B A to their weight, but those that are convolutions. No node takes those of a layer whose
    own weight none takes: SDXL's first text encoder has a layer too many.
    Errors: ValueError for a graph that has no product for one of the layers, or whose bytes are damaged.
    """
    (around, graph), known = parts(model), weights(model)
    nodes = [_node(submessage(value)) for what, value, _ in fields(graph) if what == GRAPH_NODE]
    readers: dict[str, list[_Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    renamed: dict[int, bytes] = {}
    for a, b in zip(ports[::2], ports[1::2], strict=True):
        layer = a.name.removesuffix("/A").replace("/", ".")
        weight = f"{layer}.weight"
        if weight in known and weight not in readers:
            continue
        product = _product(weight, readers)
        if id(product) in renamed:
            raise ValueError(f"two layers share the product of {weight[:80]!r}")
        if layer in merged and product.kind == "MatMul":
            renamed[id(product)] = _merged(product, weight, a.name, b.name)
        else:
            renamed[id(product)] = _beside(product, a.name, b.name)
    written = [raw for node in nodes for raw in (renamed.get(id(node), _raw(node)), *node.after)]
    rest = [bytes(raw) for what, _, raw in fields(graph) if what not in (GRAPH_NODE, GRAPH_INPUT)]
    inputs = [bytes(raw) for what, _, raw in fields(graph) if what == GRAPH_INPUT]
    inputs += [wrapped(GRAPH_INPUT, _value(port)) for port in ports]
    flat = wrapped(1, varint(3)) + b"\x10" + varint(_INT64) + wrapped(8, _FLAT.encode())
    flat += wrapped(9, b"".join(side.to_bytes(8, "little", signed=True) for side in (0, 0, -1)))
    whole = b"".join((*written, *rest, wrapped(GRAPH_INITIALIZER, flat), *inputs))
    return b"".join((*around, wrapped(MODEL_GRAPH, whole)))


def _product(weight: str, readers: dict[str, list[_Node]]) -> _Node:
    """Return the one product of a layer: of its transposed weight, or of a convolution."""
    found = readers.get(weight, [])
    if len(found) == 1 and found[0].kind == "Transpose":
        found = readers.get(found[0].outputs[0], [])
    if len(found) != 1 or found[0].kind not in ("MatMul", "Conv") or len(found[0].outputs) != 1:
        raise ValueError(f"it has no product of its own for {weight[:80]!r}")
    return found[0]


def _beside(product: _Node, a: str, b: str) -> bytes:
    """Put the LoRA's product behind a layer's, and return the layer's own, whose result has another name now."""
    x, (result,) = product.inputs[0], product.outputs
    own, through, other = (f"{a[:-2]}/{part}" for part in ("own", "through", "added"))
    if product.kind == "MatMul":  # x [rows, tokens, in]
        product.after += [
            _written("Transpose", [a], f"{a}/t", _permuted),
            _written("Transpose", [b], f"{b}/t", _permuted),
            _written("MatMul", [x, f"{a}/t"], through),
            _written("MatMul", [through, f"{b}/t"], other),
        ]
    else:  # x [rows, in, h, w], whose positions stand last: A and B from the left
        product.after += [
            _written("Reshape", [x, _FLAT], f"{a}/flat"),
            _written("MatMul", [a, f"{a}/flat"], through),
            _written("MatMul", [b, through], f"{b}/flat"),
            _written("Shape", [own], f"{b}/shape"),
            _written("Reshape", [f"{b}/flat", f"{b}/shape"], other),
        ]
    product.after.append(_written("Add", [own, other], result))
    kept = [bytes(raw) for what, _, raw in fields(product.raw) if what != 2]
    return wrapped(GRAPH_NODE, b"".join((wrapped(2, own.encode()), *kept)))


def _merged(product: _Node, weight: str, a: str, b: str) -> bytes:
    """Return the nodes of a layer's product with W + B A, of each row, in place of W."""
    x, (result,) = product.inputs[0], product.outputs
    change, whole = f"{a[:-2]}/change", f"{a[:-2]}/merged"
    nodes = (
        _written("MatMul", [b, a], change),  # [rows, out, in]
        _written("Add", [weight, change], whole),
        _written("Transpose", [whole], f"{whole}/t", _permuted),
        _written("MatMul", [x, f"{whole}/t"], result),
    )
    return b"".join(nodes)


# A Transpose of the last two of three sides: the attribute `perm` [0, 2, 1].
_permuted = wrapped(1, b"perm") + b"\xa0\x01" + varint(_INTS) + b"".join(b"\x40" + varint(i) for i in (0, 2, 1))


def _written(kind: str, inputs: Sequence[str], output: str, attribute: bytes = b"") -> bytes:
    """Write a NodeProto: 1 are inputs, 2 outputs, 3 its name, 4 what it is, 5 attributes."""
    node = b"".join(wrapped(1, name.encode()) for name in inputs) + wrapped(2, output.encode())
    node += wrapped(3, output.encode()) + wrapped(4, kind.encode())
    return wrapped(GRAPH_NODE, node + (wrapped(5, attribute) if attribute else b""))


def _value(port: Port) -> bytes:
    """Write a ValueInfoProto of a float32 tensor: see wire._port."""
    dims = (b"\x08" + varint(side) if isinstance(side, int) else wrapped(2, side.encode()) for side in port.shape)
    shape = wrapped(2, b"".join(wrapped(1, dim) for dim in dims))
    return wrapped(1, port.name.encode()) + wrapped(2, wrapped(1, b"\x08" + varint(_FLOAT) + shape))


def _node(raw: memoryview) -> _Node:
    names: dict[int, list[str]] = {1: [], 2: [], 4: [""]}
    for what, value in messages(raw):
        if what in names:
            names[what].append(bytes(value).decode())
    return _Node(names[4][-1], names[1], names[2], raw)


def _raw(node: _Node) -> bytes:
    return wrapped(GRAPH_NODE, bytes(node.raw))
