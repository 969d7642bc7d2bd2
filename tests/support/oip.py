"""The Open Inference Protocol as a client has it: messages made of fields, and what answers hold."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from server.app import Server
from server.doors.oip.inference import inference_pb2 as pb
from tests.support.patience import PATIENCE

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
DATATYPES = {"prompt": "BYTES", "negative_prompt": "BYTES", "seed": "INT64", "steps": "INT32", "guidance": "FP32"}
DATATYPES |= {"sampler": "BYTES", "width": "INT32", "height": "INT32", "preview_every": "INT32"}
DATATYPES |= {"init_image": "BYTES", "mask": "BYTES", "style_image": "BYTES"}
CODES = {"INT64": "q", "INT32": "i", "FP32": "f"}


def method(channel: grpc.Channel, name: str) -> Any:
    """A method of the service, as a stub generated from our proto has it."""
    told = SERVICE.methods_by_name[name]
    kinds = {True: "stream", False: "unary"}
    make = getattr(channel, f"{kinds[told.client_streaming]}_{kinds[told.server_streaming]}")
    return make(
        f"/{SERVICE.full_name}/{name}",
        request_serializer=GetMessageClass(told.input_type).SerializeToString,
        response_deserializer=GetMessageClass(told.output_type).FromString,
    )


def call(server: Server, name: str, message: Any) -> Any:
    """The answer of a unary method. Errors: grpc.RpcError."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        return method(channel, name)(message, timeout=PATIENCE)


def tensor(
    message: pb.ModelInferRequest, name: str, values: Sequence[Any], datatype: str = "", shape: Any = None
) -> None:
    """Put an input into a request, raw."""
    datatype = datatype or DATATYPES[name]
    message.inputs.add(name=name, datatype=datatype, shape=[len(values)] if shape is None else shape)
    message.raw_input_contents.append(raw(values, datatype))


def raw(values: Sequence[Any], datatype: str) -> bytes:
    if datatype != "BYTES":
        return struct.pack(f"<{len(values)}{CODES[datatype]}", *values)
    texts = [value.encode() if isinstance(value, str) else value for value in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def request(model: str, images: int = 1, *, id: str = "", **fields: Any) -> pb.ModelInferRequest:
    """A request in ImageRequest's words: `images` elements of each tensor that has one for each picture."""
    message = pb.ModelInferRequest(model_name=model, id=id)
    tensor(message, "prompt", [fields.pop("prompt", "")] * images)
    for name, value in fields.items():
        if name in ("negative_prompt", "seed"):
            each = [value if name != "seed" else (value + index) % 2**32 for index in range(images)]
            tensor(message, name, each)
        elif name in DATATYPES:
            tensor(message, name, [value])
        else:
            kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
            setattr(message.parameters[name], kind, value)
    return message


def parameter(value: pb.InferParameter) -> Any:
    return getattr(value, value.WhichOneof("parameter_choice") or "")


def outputs(answer: pb.ModelInferResponse) -> dict[str, list[Any]]:
    """The elements of each output."""
    told: dict[str, list[Any]] = {}
    for output, data in zip(answer.outputs, answer.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            values, at = [], 0
            while at < len(data):
                (length,) = struct.unpack_from("<I", data, at)
                values.append(data[at + 4 : at + 4 + length])
                at += 4 + length
        else:
            values = [value for (value,) in struct.iter_unpack(f"<{CODES[output.datatype]}", data)]
        assert list(output.shape) == [len(values)]
        told[output.name] = values
    return told
