"""Server reflection, v1 beside v1alpha: grpcio-reflection has the latter only, and newer tools ask for the former.

The two differ in their package's name alone (grpc/grpc-proto, grpc/reflection/v1), so v1 is served with v1alpha's
messages and its file is made from v1alpha's, for who asks what reflection itself is.
"""

from __future__ import annotations

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from server.doors.calls import Calls
from server.doors.handlers import handlers

OLD, NEW = "grpc.reflection.v1alpha", "grpc.reflection.v1"
SERVICES = (f"{NEW}.ServerReflection", f"{OLD}.ServerReflection")


def reflection_handlers(services: tuple[str, ...], calls: Calls) -> tuple[grpc.GenericRpcHandler, ...]:
    """Return the handlers of both versions, which tell of `services` (full names) and of themselves."""
    _describe()
    servicer = reflection.aio.ReflectionServicer((*services, *SERVICES))
    service = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    return tuple(handlers(service, servicer, calls, name=name) for name in SERVICES)


def _describe() -> None:
    """Put v1's file into the pool that reflection reads, unless somebody has."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(SERVICES[0])
        return
    except KeyError:
        pass
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", NEW
    file.ClearField("options")  # deprecated, and other languages' packages
    for message in file.message_type:
        for field in (field for field in message.field if field.type_name):
            field.type_name = field.type_name.replace(f".{OLD}.", f".{NEW}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{OLD}.", f".{NEW}.")
        method.output_type = method.output_type.replace(f".{OLD}.", f".{NEW}.")
    pool.AddSerializedFile(file.SerializeToString())
