"""An ASGI app on a port, run by uvicorn inside our event loop. Nobody holds a connection for ever, nor all of them."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline.errors import LatentdError
from server.access.certificates import Certificates
from server.address import ABSENT, joined, refuse_taken
from server.doors.transport import AnswerTransport

_FAREWELL = 0.5  # seconds for an app to notice that its connection is gone


@dataclass(frozen=True)
class Bounds:
    """Bounds what connections may take; seconds."""

    connections: int = 64  # at once. The one that has waited longest for a request makes place for a new one
    request: float = 10.0  # for a request to come whole
    idle: int = 60  # between two requests
    write: float = 10.0  # during which a reader takes nothing


class AsgiServer:
    """Listens from `open` on, answers from `start` on.

    `door` names the port's flag: "metrics". `ended` is called with "full", "late" or "unread" for each connection that
    is ended because of its bounds. With `certificates` it speaks TLS alone.
    """

    def __init__(
        self,
        app: Any,
        door: str,
        bounds: Bounds | None = None,
        ended: Callable[[str], object] = lambda why: None,
        certificates: Certificates | None = None,
    ) -> None:
        self._door, bounds = door, bounds or Bounds()
        self._sockets: list[socket.socket] = []
        protocol: Any = functools.partial(_Connection, bounds=bounds, ended=ended)
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # below that are lines that any client can cause
            access_log=False,
            proxy_headers=False,  # who is on the other end is what the socket says
            server_header=False,
            date_header=False,  # uvicorn.Server.serve keeps it, ten times a second; it also takes the signals
            timeout_keep_alive=bounds.idle,
            ssl_context_factory=None if certificates is None else lambda config, default: certificates.context,
        )
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)

    def open(self, host: str, port: int) -> int:
        """Bind all addresses of `host`; returns the port. Errors: LatentdError when it is taken."""
        refuse_taken(self._door, host, port)
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in addresses:
            listening = socket.socket(family, kind, protocol)
            try:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                _notice_the_vanished(listening)
                if family == socket.AF_INET6 and len(addresses) > 1:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listening.bind((address[0], port, *address[2:]))
                listening.listen(self._server.config.backlog)  # only a socket that listens keeps others off its port
            except OSError as error:
                listening.close()
                if error.errno in ABSENT:  # a name may have addresses that this machine has not
                    continue
                raise LatentdError(
                    f"{self._door} port {joined(host, port)} cannot be opened: {error.strerror}"
                ) from None
            self._sockets.append(listening)
            port = listening.getsockname()[1]
        return port

    async def start(self) -> None:
        await self._server.startup(self._sockets)

    def hurry(self, seconds: float) -> None:
        """Wait `seconds` for readers of what is being sent, where that is less than before."""
        for connection in list(self._server.server_state.connections):
            if isinstance(connection, _Connection):
                connection.hurry(seconds)

    async def close(self, grace: float = 0.0) -> None:
        """Take no more requests; those that are being answered have `grace` seconds. Of no effect before `open`."""
        state = self._server.server_state
        if self._server.started:
            for server in self._server.servers:
                server.close()
            for connection in list(state.connections):
                connection.shutdown()
            await _end(state.tasks, grace)
        for connection in list(state.connections):
            connection.transport.abort()
        await _end(state.tasks, _FAREWELL)
        for task in list(state.tasks):
            task.cancel()
        for listening in self._sockets:
            listening.close()


def _notice_the_vanished(listening: socket.socket) -> None:
    """Have the kernel ask connections that are idle whether anybody is there: half a minute, as at the gRPC door."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # connections inherit what their listener has
    for option, value in ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 2)):
        listening.setsockopt(socket.IPPROTO_TCP, option, value)


async def _end(tasks: set[asyncio.Task[None]], seconds: float) -> None:
    if tasks:
        await asyncio.wait(list(tasks), timeout=seconds)


class _Connection(H11Protocol):
    """Ends a connection whose request does not come, or whose answer nobody reads."""

    def __init__(self, *, bounds: Bounds, ended: Callable[[str], object], **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._bounds, self._ended = bounds, ended
        self._since = self.loop.time()  # without a request
        self._expected: asyncio.TimerHandle | None = None  # a request, to come whole
        self._unread: asyncio.TimerHandle | None = None  # what was written

    @property
    def _free(self) -> bool:
        """Return whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport = cast(asyncio.Transport, AnswerTransport(transport, self.loop))
        if len(self.connections) >= self._bounds.connections:
            self._ended("full")
            free = [other for other in self.connections if isinstance(other, _Connection) and other._free]
            if not free:
                self.transport = transport
                self._refuse(503, f"{len(self.connections)} connections are open; at most {len(self.connections)} may")
                return
            oldest = min(free, key=lambda other: other._since)
            self.connections.discard(oldest)
            oldest.transport.abort()
        super().connection_made(transport)
        # Whatever the kernel does not take is unread: see pause_writing. asyncio's TLS pauses at `high` bytes already,
        # and keeps up to 64 KiB below itself, which are not seen here.
        transport.set_write_buffer_limits(high=int(transport.get_extra_info("sslcontext") is not None))
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._expected, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def _expect(self) -> None:
        """Begin to wait for the rest of a request, or end to."""
        coming = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing()
        if coming and self._expected is None:
            self._expected = self.loop.call_later(self._bounds.request, self._late)
        elif not coming and self._expected is not None:
            self._expected.cancel()
            self._expected = None

    def _late(self) -> None:
        self._ended("late")
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            self._refuse(408, f"the request did not come whole within {self._bounds.request:g} s")
        else:
            self.transport.abort()

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer, outside of any request, and close."""
        reason = {408: "Request Timeout", 503: "Service Unavailable"}[status]
        head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: text/plain\r\ncontent-length: {len(sentence)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n{sentence}".encode())
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def hurry(self, seconds: float) -> None:
        """Wait `seconds` for the reader from now on, where that is less than before."""
        if seconds < self._bounds.write:
            self._bounds = replace(self._bounds, write=seconds)
            if self._unread is not None:
                self._unread.cancel()
                self._look(self.transport.get_write_buffer_size())

    def _look(self, size: int) -> None:
        """Look again in a while whether the reader has taken any of the `size` bytes."""
        self._unread = self.loop.call_later(self._bounds.write, self._stalled, size)

    def _stalled(self, size: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left < size:
            self._look(left)
            return
        self._ended("unread")
        self.transport.abort()
