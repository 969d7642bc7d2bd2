"""HTTP connections that are silent, half open or never read, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from pipeline.errors import LatentdError
from server.doors import asgi
from server.doors.asgi import AsgiServer, Bounds, _Connection
from server.doors.transport import AnswerTransport
from tests.support.patience import PATIENCE

REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class App:
    """Answers with `body`, once `go_on` is set."""

    def __init__(self, body: bytes = b"well") -> None:
        self.body, self.go_on, self.begun = body, asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        self.begun.set()
        await self.go_on.wait()
        length = str(len(self.body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": self.body})


@asynccontextmanager
async def listening(app: Callable[..., Any], **bounds: Any) -> AsyncIterator[tuple[AsgiServer, int, list[str]]]:
    ended: list[str] = []
    server = AsgiServer(app, "metrics", Bounds(**bounds), ended.append)
    port = server.open("127.0.0.1", 0)
    await server.start()
    try:
        async with asyncio.timeout(PATIENCE):
            yield server, port, ended
    finally:
        await server.close()


async def ask(peer: Peer, data: bytes = REQUEST) -> bytes:
    """Send, and read one answer."""
    reader, writer = peer
    writer.write(data)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: "))
    return head.split(b"\r\n")[0] + b" " + await reader.readexactly(length)


def connect(port: int) -> Any:
    return asyncio.open_connection("127.0.0.1", port)


def test_a_connection_is_kept_between_requests_and_closed_with_the_server() -> None:
    async def run() -> None:
        async with listening(App()) as (server, port, ended):
            peer = await connect(port)
            assert await ask(peer) == await ask(peer) == b"HTTP/1.1 200 OK well"
            await server.close()
            assert await peer[0].read() == b"" and not ended
            with pytest.raises(OSError):
                await connect(port)

    asyncio.run(run())


def test_who_waits_longest_without_a_request_makes_place() -> None:
    async def run() -> None:
        async with listening(App(), connections=2) as (_, port, ended):
            silent, half = await connect(port), await connect(port)
            half[1].write(REQUEST[:9])
            peers = [silent, half]
            for number in range(1, 5):
                peers.append(await connect(port))
                assert await ask(peers[-1]) == b"HTTP/1.1 200 OK well"
                assert ended == ["full"] * number
            for gone in (silent, half):
                with pytest.raises((ConnectionError, EOFError)):
                    await gone[0].readexactly(1)

    asyncio.run(run())


def test_where_all_are_being_answered_a_new_one_is_refused_in_words() -> None:
    async def run() -> None:
        app = App()
        app.go_on.clear()
        async with listening(app, connections=1) as (_, port, ended):
            peer = await connect(port)
            answer = asyncio.create_task(ask(peer))
            await app.begun.wait()
            second = await connect(port)
            refused = await second[0].read()
            assert refused.startswith(b"HTTP/1.1 503 ") and refused.endswith(b"1 connections are open; at most 1 may")
            app.go_on.set()
            assert await answer == b"HTTP/1.1 200 OK well" and ended == ["full"]

    asyncio.run(run())


def test_an_answer_goes_out_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two, the server would leave an answer that has begun, which a balancer may not ask for again."""
    written: list[bytes] = []

    class Recorded:
        def __init__(self, transport: asyncio.Transport) -> None:
            self._transport = transport

        def __getattr__(self, name: str) -> Any:
            return getattr(self._transport, name)

        def write(self, data: bytes) -> None:
            written.append(data)
            self._transport.write(data)

    def recorded(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> AnswerTransport:
        return AnswerTransport(cast(asyncio.Transport, Recorded(transport)), loop)

    monkeypatch.setattr(asgi, "AnswerTransport", recorded)

    async def run() -> None:
        async with listening(App()) as (_, port, _):
            peer = await connect(port)
            for _ in range(2):
                assert await ask(peer) == b"HTTP/1.1 200 OK well"
        whole = [data for data in written if data]
        assert len(whole) == 2 and all(data.startswith(b"HTTP/1.1 200 ") and data.endswith(b"well") for data in whole)

    asyncio.run(run())


def test_the_head_of_a_stream_does_not_wait_for_its_first_event() -> None:
    async def run() -> None:
        app = App()
        start = asyncio.Event()

        async def streaming(scope: Any, receive: Any, send: Any) -> None:
            async def sent(message: Any) -> None:
                await send(message)
                if message["type"] == "http.response.start":
                    await start.wait()

            await app(scope, receive, sent)

        async with listening(streaming) as (_, port, _):
            reader, writer = await connect(port)
            writer.write(REQUEST)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            start.set()
            assert await reader.readexactly(4) == b"well"

    asyncio.run(run())


HALF = [REQUEST[:9], b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc"]


@pytest.mark.parametrize("before, begin", [(b"", b""), (b"", HALF[0]), (b"", HALF[1]), (REQUEST, HALF[0])])
def test_a_request_that_does_not_come_whole_is_ended_in_words(before: bytes, begin: bytes) -> None:
    async def run() -> None:
        app = App()
        async with listening(app, request=PATIENCE if before else 0.01, idle=1000) as (server, port, ended):
            peer = await connect(port)
            if before:
                await ask(peer, before)
                (connection,) = server._server.server_state.connections
                assert isinstance(connection, _Connection)
                connection._bounds = replace(connection._bounds, request=0.01)
            app.go_on.clear()
            peer[1].write(begin)
            answer = await peer[0].read()
            assert answer.startswith(b"HTTP/1.1 408 ") and answer.endswith(b"did not come whole within 0.01 s")
            assert ended == ["late"]
            app.go_on.set()

    asyncio.run(run())


def test_an_answer_that_nobody_reads_is_ended() -> None:
    async def run() -> None:
        async with listening(App(bytes(32 << 20)), write=0.05) as (server, port, ended):
            reader, writer = await connect(port)
            writer.transport.pause_reading()
            writer.write(REQUEST)
            while not ended:
                await asyncio.sleep(0)
            assert ended == ["unread"]
            writer.transport.resume_reading()
            with pytest.raises((ConnectionError, EOFError)):
                await reader.readexactly(32 << 20)
            assert not server._server.server_state.connections

    asyncio.run(run())


def test_a_request_that_is_being_answered_has_its_grace() -> None:
    async def run() -> None:
        for grace, answered in ((PATIENCE, True), (0.0, False)):
            app = App()
            app.go_on.clear()
            async with listening(app) as (server, port, _):
                peer = await connect(port)
                answer = asyncio.create_task(ask(peer))
                await app.begun.wait()
                closing = asyncio.create_task(server.close(grace))
                if answered:
                    app.go_on.set()
                    assert await answer == b"HTTP/1.1 200 OK well"
                else:
                    with pytest.raises((ConnectionError, EOFError)):
                        await answer
                    app.go_on.set()
                await closing

    asyncio.run(run())


def test_a_port_in_use_is_refused_in_words() -> None:
    first, second = AsgiServer(App(), "metrics"), AsgiServer(App(), "metrics")
    port = first.open("127.0.0.1", 0)
    with pytest.raises(LatentdError, match=f"metrics port 127.0.0.1:{port} cannot be opened: Address already"):
        second.open("127.0.0.1", port)
    asyncio.run(first.close())
    asyncio.run(second.close())
    assert second.open("127.0.0.1", port) == port
    asyncio.run(second.close())
