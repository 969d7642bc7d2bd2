"""A stream whose reader takes nothing: what it loses, whom it holds up, and what it leaves when it goes."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from http.client import HTTPConnection
from typing import Any, Self

import pytest

from engines.model import Model
from server.app import Server
from server.doors.http.app import application
from server.doors.http.guard import Guard
from server.limits import Limits
from server.mailbox import collect
from server.request import ImageRequest
from server.service import Service
from tests.support.doors import events_of
from tests.support.held import Held, eventually
from tests.support.jobs import Running, running
from tests.support.patience import PATIENCE
from tests.support.serving import http, metric, nothing_left, quick, serving

PAGE = ("/api/generate", {"prompt": "a cat", "steps": 40, "preview_every": 1, "images": 2})
OPENAI = ("/v1/images/generations", {"prompt": "a cat", "steps": 40, "stream": True, "partial_images": 3})


class Reader:
    """The other end of a connection, as ASGI has it: takes `after` messages, then none until `go_on`."""

    def __init__(self, path: str, body: dict[str, Any], after: int) -> None:
        self.scope = {
            **{"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1"},
            **{"method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""},
            **{"scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 50000)},
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        }
        self._body: bytes | None = json.dumps(body).encode()
        self._after = after
        self.stalled, self.go_on, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.text = ""

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.text += message.get("body", b"").decode()
        self._after -= 1
        if self._after <= 0:
            self.stalled.set()
            await self.go_on.wait()


@pytest.mark.parametrize(("path", "body"), [PAGE, OPENAI], ids=["page", "openai"])
def test_a_reader_that_stalls_loses_previews_and_no_picture(path: str, body: dict[str, Any], model: Model) -> None:
    async def stall(at_work: Running) -> None:
        service = Service("m", Limits(), at_work.metrics)
        service.device = at_work.device
        await service.previews()
        reader = Reader(path, body, after=2)  # the head and one event
        guard = Guard(application(service, 1 << 20))
        answering = asyncio.create_task(guard(reader.scope, reader.receive, reader.send))
        await reader.stalled.wait()
        other = await service.submit(ImageRequest(prompt="a", steps=2), "other", None)
        pictures, _ = await collect(service.events(other.job))
        assert len(pictures) == 1, "nobody else waits"
        await asyncio.to_thread(eventually, lambda: at_work.leftovers, [])
        reader.go_on.set()
        await answering
        names = [name for name, _ in events_of(reader.text)]
        if path == PAGE[0]:
            assert names.count("image") == 2 and names[-1] == "done"
            assert names.count("preview") <= 4, "of 78"
        else:
            assert names.count("image_generation.completed") == 1
            assert names.count("image_generation.partial_image") <= 2

    with running(model) as at_work:
        asyncio.run(stall(at_work))


@pytest.mark.parametrize(("path", "body"), [PAGE, OPENAI], ids=["page", "openai"])
def test_a_reader_that_stalls_and_goes_frees_its_seat(
    path: str, body: dict[str, Any], wired: Model, held: Held
) -> None:
    async def leave(at_work: Running) -> None:
        service = Service("m", Limits(), at_work.metrics)
        service.device = at_work.device
        await service.previews()
        held.hold()
        reader = Reader(path, body, after=1)
        guard = Guard(application(service, 1 << 20))
        answering = asyncio.create_task(guard(reader.scope, reader.receive, reader.send))
        await asyncio.to_thread(held.begun)
        await reader.stalled.wait()
        assert not guard.idle.is_set()
        reader.go_on.set()
        reader.gone.set()
        await answering
        assert guard.idle.is_set()
        held.release()
        await asyncio.to_thread(eventually, lambda: at_work.leftovers, [])
        label = "page" if path == PAGE[0] else "openai"
        assert at_work.metric("requests_total", door=label, code="CANCELLED") == 1

    with running(wired) as at_work:
        held.runs.clear()
        asyncio.run(leave(at_work))
        assert len(held.runs) == 1, "no further step"


def test_who_goes_before_the_last_event_is_taken_has_gone(model: Model) -> None:
    """To a connection that is gone all the rest is sent at once, which is no answer."""

    async def leave(at_work: Running) -> None:
        service = Service("m", Limits(), at_work.metrics)
        service.device = at_work.device
        reader = Reader(OPENAI[0], {"prompt": "a", "steps": 1, "stream": True}, after=2)  # the head and the picture
        guard = Guard(application(service, 1 << 20))
        answering = asyncio.create_task(guard(reader.scope, reader.receive, reader.send))
        await reader.stalled.wait()
        await asyncio.to_thread(eventually, lambda: at_work.leftovers, [])
        reader.gone.set()
        reader.go_on.set()
        await answering
        assert at_work.metric("requests_total", door="openai", code="CANCELLED") == 1

    with running(model) as at_work:
        asyncio.run(leave(at_work))


class Narrow:
    """A client on a real socket that takes nothing before it is read: what the kernel holds for it is a few KB."""

    def __init__(self, server: Server, path: str, body: dict[str, Any]) -> None:
        asgi = server._http._server
        assert asgi and server.http_port
        self._connections = asgi._server.server_state.connections
        for listening in asgi._sockets:  # a connection has what its listener has
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(("127.0.0.1", server.http_port))
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self._socket.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)

    def read(self) -> str:
        """Read to the end; the chunks' sizes are left in."""
        data = b""
        for connection in list(self._connections):  # quick again
            connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        while part := self._socket.recv(1 << 16):
            data += part
        return data.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


# At this size a picture is more than the kernel holds for a reader like that; few steps, for they take a while.
WIDE, FEW = (64, 64), {"steps": 5}


@pytest.mark.parametrize(("path", "body"), [PAGE, OPENAI], ids=["page", "openai"])
def test_a_stream_that_nobody_reads_is_ended_and_counted(path: str, body: dict[str, Any], model: Model) -> None:
    label = "page" if path == PAGE[0] else "openai"
    with (
        serving(model, seats=2, http_port=0, sizes=(WIDE,), unread_seconds=0.2) as server,
        Narrow(server, path, body | FEW) as reader,
    ):
        eventually(lambda: metric(server, "connections_ended_total", door="http", why="unread"), 1)
        nothing_left(server)
        eventually(lambda: metric(server, "requests_total", door=label, code="CANCELLED"), 1)
        told = reader.read()  # what the kernel had: of a busy machine's stream that may be the last picture's beginning
        assert told.startswith("HTTP/1.1 200") and not told.endswith("0\r\n\r\n")
        whole = re.findall(r"event: (\S+)\ndata: [^\n]*\n\n", told)
        assert not {"done", "image_generation.completed"} & {*whole}


@pytest.mark.parametrize(("path", "body"), [PAGE, OPENAI], ids=["page", "openai"])
def test_a_stream_that_is_read_late_has_every_picture(path: str, body: dict[str, Any], model: Model) -> None:
    """Its device was done long before: nothing waits for a reader but what is his."""
    with (
        serving(model, seats=2, http_port=0, sizes=(WIDE,)) as server,
        Narrow(server, path, body | FEW) as reader,
    ):
        eventually(lambda: metric(server, "images_total"), body.get("images", 1))
        nothing_left(server)
        told = reader.read()
        assert told.endswith("0\r\n\r\n")
        if path == PAGE[0]:
            assert told.count("event: image\n") == 2 and told.count("event: done\n") == 1
            assert told.count("event: preview\n") < 2 * 4, "he missed some"
        else:
            assert told.count("event: image_generation.completed\n") == 1


def test_one_who_waits_is_told_his_place(wired: Model, held: Held) -> None:
    """About once a second; and what was forecast, where somebody could."""
    with serving(wired, http_port=0, seats=1) as server:
        quick(server, row=5.0)
        held.hold()
        connections = []
        for images in (2, 1):
            connection = HTTPConnection("127.0.0.1", server.http_port, timeout=30)
            body = json.dumps({"prompt": "a", "steps": 1, "images": images})
            connection.request("POST", "/api/generate", body, {"Content-Type": "application/json"})
            connections.append((connection, connection.getresponse()))
            if images == 2:
                held.begun()  # one of the two sits before the next caller comes
        seen: list[tuple[str, Any]] = []
        answer = connections[1][1]
        while not seen or seen[-1][0] != "waiting":
            block = b""
            while not block.endswith(b"\n\n"):
                block += answer.readline()
            seen += events_of(block.decode())
        assert [name for name, _ in seen] == ["queued", "waiting"]
        assert seen[0][1]["ahead"] == seen[1][1]["ahead"] == 1, "one sits, one waits before"
        assert seen[0][1]["expected_seconds"] > 0
        held.release()
        for connection, each in connections:
            assert "event: done" in each.read().decode()
            connection.close()


def test_a_client_that_vanishes_without_a_word_is_noticed(model: Model) -> None:
    """By the kernel, which asks it after twenty idle seconds."""
    with (
        serving(model, http_port=0) as server,
        socket.create_connection(("127.0.0.1", int(http(server).rpartition(":")[2]))),
    ):
        asgi = server._http._server
        assert asgi
        eventually(lambda: len(asgi._server.server_state.connections), 1)
        (connection,) = asgi._server.server_state.connections
        wire = connection.transport.get_extra_info("socket")
        assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 20
