"""What the libraries alone take: calls of gRPC's and uvicorn's servers that make nothing, on the same event loop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import grpc
import grpc.aio
import uvicorn

from benchmarks.doors.http import Http
from latentd.channel import channel_options

_METHOD = "/floor.Floor/Call"
FLOORS = ("gRPC, nothing", "gRPC, a picture", "HTTP, nothing", "HTTP, a picture")


@contextlib.asynccontextmanager
async def floors(picture: int, answer: int) -> AsyncIterator[dict[str, Callable[[], Awaitable[int]]]]:
    """Serve `picture` bytes through gRPC and an `answer` of so many through HTTP, or none; yields ways to ask."""
    async with contextlib.AsyncExitStack() as stack:
        unary = await stack.enter_async_context(_grpc())
        http = await stack.enter_async_context(_http())

        async def grpc_of(size: int) -> int:
            return len(await unary(size.to_bytes(8, "big")))

        async def http_of(size: int) -> int:
            return await http.post(f"/{size}", {})

        yield {
            FLOORS[0]: lambda: grpc_of(0),
            FLOORS[1]: lambda: grpc_of(picture),
            FLOORS[2]: lambda: http_of(0),
            FLOORS[3]: lambda: http_of(answer),
        }


@contextlib.asynccontextmanager
async def _grpc() -> AsyncIterator[grpc.aio.UnaryUnaryMultiCallable]:
    """Serve unary calls of bytes, that no protobuf is made of."""
    made: dict[bytes, bytes] = {}

    async def answer(size: bytes, _: grpc.aio.ServicerContext) -> bytes:
        return made.setdefault(size, bytes(int.from_bytes(size, "big")))

    server = grpc.aio.server()
    service, _, method = _METHOD[1:].partition("/")
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address, options=channel_options(address)) as channel:
            yield channel.unary_unary(_METHOD)
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def _http() -> AsyncIterator[Http]:
    """Serve the bytes that the path says, by an ASGI app without a framework."""
    made: dict[str, bytes] = {}

    async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        body = made.setdefault(scope["path"], bytes(int(scope["path"][1:])))
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False, timeout_keep_alive=600
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    listening = socket.socket(proto=socket.IPPROTO_TCP)  # else asyncio leaves Nagle on
    listening.bind(("127.0.0.1", 0))
    await server.startup([listening])
    http = Http(listening.getsockname()[1])
    try:
        yield http
    finally:
        http.close()
        await server.shutdown([listening])
