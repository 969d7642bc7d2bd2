"""A connection's transport on which the head of an HTTP answer goes out together with its body."""

from __future__ import annotations

import asyncio
from typing import Any

_HEAD = b"HTTP/1.1 "


class AnswerTransport:
    """Passes everything on to a transport; what begins as a head waits for the write after it, at most for a turn.

    uvicorn writes them apart, each with a system call. A server that is killed between the two leaves an answer that
    has begun, and which no balancer may ask of another server; `benchmarks.machines` met one. A body that begins as a
    head waits as long, which harms nothing.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head or not data.startswith(_HEAD):
            head, self._head = self._head, b""
            self._transport.write(head + data if head else data)
        else:
            self._head = data
            self._loop.call_soon(self._flush)  # an answer that is a stream has its first event later

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._head = b""
        self._transport.abort()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)
