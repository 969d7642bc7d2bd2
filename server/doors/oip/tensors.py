"""Tensors of the Open Inference Protocol: those of a request as lists of values, values as those of an answer.

A tensor's elements are either in its typed `contents` or, little endian, in the request's `raw_input_contents`; there
each element of BYTES has its length before it, in four bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InvalidRequest
from server.doors.oip.inference import inference_pb2 as pb
from server.limits import within

_CONTENTS = {"BYTES": "bytes_contents", "INT64": "int64_contents", "INT32": "int_contents", "FP32": "fp32_contents"}
_CODES = {"INT64": "q", "INT32": "i", "FP32": "f"}  # of struct
_LENGTH = struct.Struct("<I")

Values = list[Any]


@dataclass(frozen=True)
class Tensor:
    """Says what a tensor is: its datatype, and how many elements its only dimension has; None: as many as pictures."""

    name: str
    datatype: str
    length: int | None = None
    optional: bool = True

    @property
    def shape(self) -> list[int]:
        return [-1 if self.length is None else self.length]


def values_of(request: pb.ModelInferRequest, tensors: Sequence[Tensor], most: int) -> dict[str, Values]:
    """Read a request's inputs by name; what has an element for each picture has at most `most`.

    Errors: InvalidRequest for what is none of `tensors`, or not as they say.
    """
    known = {tensor.name: tensor for tensor in tensors}
    raw, values = request.raw_input_contents, {}
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} tensors; it must have one of each of the {len(request.inputs)} inputs"
        )
    for number, sent in enumerate(request.inputs):
        name = sent.name
        if name not in known:
            raise InvalidRequest(
                f"{name[:64]!r} is no input of {request.model_name[:64]}; there are: {', '.join(known)}"
            )
        if name in values:
            raise InvalidRequest(f"{name} comes twice among the inputs", name)
        _refuse_shared_memory(name, sent.parameters)
        length = _length(sent, known[name], most)
        if raw and sent.HasField("contents"):
            raise InvalidRequest(f"{name} has contents beside raw_input_contents; it must be in one of the two", name)
        values[name] = _raw(name, sent.datatype, length, raw[number]) if raw else _typed(sent, length)
    for tensor in tensors:
        if not tensor.optional and tensor.name not in values:
            raise InvalidRequest(f"{tensor.name} is missing among the inputs", tensor.name)
    return values


def texts_of(name: str, values: Sequence[bytes]) -> list[str]:
    """Decode the elements of a tensor of text. Errors: InvalidRequest."""
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name} is not UTF-8; text is", name) from None


def wanted_of(request: pb.ModelInferRequest, tensors: Sequence[Tensor]) -> set[str]:
    """Return the names of the outputs that a request wants: all where it names none. Errors: InvalidRequest."""
    known = [tensor.name for tensor in tensors]
    for output in request.outputs:
        if output.name not in known:
            raise InvalidRequest(
                f"{output.name[:64]!r} is no output of {request.model_name[:64]}; there are: {', '.join(known)}"
            )
        _refuse_shared_memory(output.name, output.parameters)
        if "classification" in output.parameters:
            raise InvalidRequest(f"{output.name} has the parameter 'classification'; no output here has classes")
    return {output.name for output in request.outputs} or set(known)


def add_output(answer: pb.ModelInferResponse, tensor: Tensor, values: Sequence[Any]) -> None:
    """Put a tensor of so many elements into an answer."""
    answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=[len(values)])
    if tensor.datatype == "BYTES":
        data = b"".join(part for value in values for part in (_LENGTH.pack(len(value)), value))
    else:
        data = struct.pack(f"<{len(values)}{_CODES[tensor.datatype]}", *values)
    answer.raw_output_contents.append(data)


def _refuse_shared_memory(name: str, parameters: Mapping[str, Any]) -> None:
    if "shared_memory_region" in parameters:
        raise InvalidRequest(f"{name} is in shared memory, which this server has none of; send it in the message", name)


def _length(sent: pb.ModelInferRequest.InferInputTensor, tensor: Tensor, most: int) -> int:
    """Return how many elements a tensor says it has. Errors: InvalidRequest."""
    name = tensor.name
    if sent.datatype != tensor.datatype:
        raise InvalidRequest(f"{name} has the datatype {sent.datatype[:16]!r}; it takes {tensor.datatype}", name)
    shape = list(sent.shape[:8])
    if len(shape) != 1 or shape[0] < 0 or tensor.length not in (None, shape[0]):
        takes = "[n]" if tensor.length is None else f"[{tensor.length}]"
        raise InvalidRequest(f"{name} has the shape {shape}; it takes {takes}", name)
    return shape[0] if tensor.length is not None else within(f"the length of {name}", shape[0], 1, most)


def _typed(sent: pb.ModelInferRequest.InferInputTensor, length: int) -> Values:
    """Return the elements that are in a tensor's contents. Errors: InvalidRequest."""
    values = getattr(sent.contents, _CONTENTS[sent.datatype])
    if len(values) != length:
        raise InvalidRequest(f"{sent.name} has {len(values)} elements; its shape is [{length}]", sent.name)
    return list(values)


def _raw(name: str, datatype: str, length: int, data: bytes) -> Values:
    """Read so many raw elements. Errors: InvalidRequest where the bytes do not come out even."""
    if datatype != "BYTES":
        form = f"<{length}{_CODES[datatype]}"
        if len(data) != struct.calcsize(form):
            raise InvalidRequest(
                f"{name} has {len(data)} bytes; {length} of {datatype} have {struct.calcsize(form)}", name
            )
        return list(struct.unpack(form, data))
    elements, at = [], 0
    for number in range(length):
        begin = at + _LENGTH.size
        if begin > len(data) or (at := begin + _LENGTH.unpack_from(data, at)[0]) > len(data):
            raise InvalidRequest(f"{name} ends before or inside its element {number}", name)
        elements.append(data[begin:at])
    if at < len(data):
        raise InvalidRequest(f"{name} has {len(data) - at} bytes after its last element, {length - 1}", name)
    return elements


def parameter(value: pb.InferParameter) -> Any:
    """Return what a parameter holds; None: nothing."""
    kind = value.WhichOneof("parameter_choice")
    return None if kind is None else getattr(value, kind)


def finite(value: Any) -> bool:
    """Return whether a parameter's value is a number that is not NaN or infinite; a bool is no number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
