"""gRPC handlers made from a service's descriptor, so that every service refuses nonsense alike.

grpc.aio answers bytes that do not parse with UNKNOWN and a Python class name, and an unexpected exception with its
text. Here bytes that do not parse are INVALID_ARGUMENT, a LatentdError carries its own code, and anything else is
logged and answered with one fixed sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from pipeline.errors import InvalidRequest, LatentdError
from server.doors.calls import Calls
from server.doors.fields import MOST, has_more_fields
from server.errors import UNEXPECTED, Busy, Loading, Stalled

log = logging.getLogger("latentd.door")


class _Malformed:
    """Stands where a message should be."""

    def __init__(self, error: InvalidRequest) -> None:
        self.error = error


def handlers(
    service: Any,
    servicer: object,
    calls: Calls,
    *,
    name: str = "",
    apart: Mapping[str, Calls] | None = None,
    keyed: bool = True,
) -> grpc.GenericRpcHandler:
    """Handle all methods of `service`, a ServiceDescriptor, that `servicer` has; the rest stay UNIMPLEMENTED.

    `calls` counts them, but for those methods that are counted `apart`: health, which needs no key. Nor does any
    without `keyed`. `name`: the service's full name for clients, where it is another than the descriptor's.
    """
    apart = apart or {}
    by_method = {}
    for method in service.methods:
        behaviour = getattr(servicer, method.name, None)
        if behaviour is None or behaviour.__module__.endswith("_pb2_grpc"):  # generated: raises NotImplementedError
            continue
        # What comes is a stream, which is the same on the wire: only so a call is counted before its message is there.
        streams = method.server_streaming
        kind = grpc.stream_stream_rpc_method_handler if streams else grpc.stream_unary_rpc_method_handler
        by_method[method.name] = kind(
            (_streamed if streams else _answered)(
                behaviour, method, apart.get(method.name, calls), keyed and method.name not in apart
            ),
            request_deserializer=_parser(GetMessageClass(method.input_type)),
            response_serializer=_written,
        )
    return grpc.method_handlers_generic_handler(name or service.full_name, by_method)


def _parser(kind: type[Message]) -> Callable[[bytes], Message | _Malformed]:
    def parse(data: bytes) -> Message | _Malformed:
        if has_more_fields(data, kind.DESCRIPTOR):
            return _Malformed(InvalidRequest(f"the request has more than {MOST} fields"))
        try:
            return kind.FromString(data)
        except DecodeError:
            name = kind.DESCRIPTOR.full_name
            return _Malformed(InvalidRequest(f"the request's {len(data)} bytes do not parse as {name}"))

    return parse


def _written(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


async def _checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, _Malformed):
            raise request.error
        yield request


def _streamed(behaviour: Callable[..., Any], method: Any, calls: Calls, keyed: bool) -> Callable[..., Any]:
    async def guarded(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(await calls.entered(context, keyed=keyed))
                request = await _request(requests, method, calls, context)
                await _stream(behaviour(request, context), calls, context)
            except Exception as error:
                await _failed(error, calls, context, stack)

    return guarded


def _answered(behaviour: Callable[..., Any], method: Any, calls: Calls, keyed: bool) -> Callable[..., Any]:
    async def guarded(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> bytes | None:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(await calls.entered(context, keyed=keyed))
                request = await _request(requests, method, calls, context)
                return calls.answer(context, _written(await behaviour(request, context)), stack)
            except Exception as error:
                await _failed(error, calls, context, stack)

    return guarded


async def _failed(
    error: Exception, calls: Calls, context: grpc.aio.ServicerContext, stack: contextlib.ExitStack
) -> None:
    """End a call that an error ended."""
    if isinstance(error, Stalled):
        calls.give_up(context, error, stack)
        raise asyncio.CancelledError from None  # gRPC then sends no status by itself
    await abort(context, error)


async def _request(requests: AsyncIterator[Any], method: Any, calls: Calls, context: grpc.aio.ServicerContext) -> Any:
    return _checked(requests) if method.client_streaming else await _only(calls, context)


async def _only(calls: Calls, context: grpc.aio.ServicerContext) -> Message:
    request = await calls.read(context)
    if request is grpc.aio.EOF:  # pyright: ignore[reportAttributeAccessIssue] - its stubs lack it
        raise InvalidRequest("the call has no message")
    if isinstance(request, _Malformed):
        raise request.error
    return request


async def _stream(responses: AsyncGenerator[Any, None], calls: Calls, context: grpc.aio.ServicerContext) -> None:
    first = True
    async with contextlib.aclosing(responses):
        async for response in responses:
            try:
                await calls.write(context, response, first=first)
                first = False
            except Stalled as error:
                await responses.athrow(error)  # whoever makes them hears why nobody takes them
                raise


async def abort(context: grpc.aio.ServicerContext, error: Exception) -> None:
    """End the call with the error's code and sentence; one that passes says when to ask again.

    While the model loads gRPC's own retries, where a client has them, are told to wait as long (gRFC A6, pushback).
    """
    if isinstance(error, grpc.aio.BaseError):
        raise error  # gRPC's own: ended already, or nobody is there
    trailing = tuple(context.trailing_metadata() or ())
    if not isinstance(error, LatentdError):
        log.error("unexpected error", exc_info=error, extra={"request": dict(trailing).get("x-request-id")})
        await context.abort(grpc.StatusCode.INTERNAL, UNEXPECTED, trailing)
        return
    code: grpc.StatusCode = getattr(grpc.StatusCode, error.code)
    if isinstance(error, Loading):
        trailing += (("grpc-retry-pushback-ms", f"{1000 * error.retry_after:.0f}"),)
    if isinstance(error, Busy | Loading):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.CopyFrom(Duration(seconds=int(error.retry_after), nanos=int(error.retry_after % 1 * 1e9)))
        status = status_pb2.Status(code=code.value[0], message=str(error))
        status.details.add().Pack(retry)
        trailing += tuple(rpc_status.to_status(status).trailing_metadata or ())
    await context.abort(code, str(error), trailing)
