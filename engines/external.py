"""The files that an ONNX graph takes its weights from, read from its protobuf itself: a server has no onnx.

A graph may name any file of the machine; only those that the manifest vouches for may be opened for it.
"""

from __future__ import annotations

from collections.abc import Iterator

# Which fields of which message hold which message (onnx.proto3 of onnx 1.23), as far as tensors lie below.
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


def external_files(model: bytes) -> set[str]:
    """The `location` of every tensor with external data in a serialised ModelProto. Errors: ValueError."""
    found: set[str] = set()
    waiting = [("Model", memoryview(model), 0)]
    while waiting:
        kind, message, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError(f"its messages are nested more than {_DEEPEST} deep")
        if kind == "Entry":
            entry = {number: bytes(value) for number, value in _fields(message)}
            if entry.get(1) == b"location":
                found.add(entry.get(2, b"").decode())
            continue
        inner = _FIELDS[kind]
        waiting += [(inner[number], value, depth + 1) for number, value in _fields(message) if number in inner]
    return found


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of each field that has a length; the others are passed over."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(message, at)
            if length > end - at:
                break
            yield key >> 3, message[at : at + length]
            at += length
        else:
            raise ValueError(f"a field of kind {kind} at byte {at}")
    if at != end:
        raise ValueError("it is cut short")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("it is cut short")
