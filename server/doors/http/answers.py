"""JSON answers and server-sent events with pictures in them, encoded off the event loop where they are large."""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.doors.http.call import Call
from server.doors.http.errors import Refusal
from server.errors import Cancelled

# Bytes of pictures, which take three milliseconds to encode. A picture's base64 holds the GIL, in a thread too: all
# that a thread does for others is to let them come between two pictures.
_LARGE = 2 << 20

_PLACE = secrets.token_hex(16)  # stands where a picture will: no client knows it, so that no text of his has it


async def encoded(content: Mapping[str, Any], pictures: int = 0) -> bytes:
    """Write JSON, in which bytes are base64. `pictures`: how many bytes there are to encode."""
    return await asyncio.to_thread(_written, content) if pictures > _LARGE else _written(content)


async def json_response(content: Mapping[str, Any], pictures: int = 0) -> Response:
    """Answer with JSON; see `encoded`."""
    return Response(await encoded(content, pictures), media_type="application/json")


async def sse(name: str, content: Mapping[str, Any], pictures: int = 0) -> bytes:
    """Write an event of a text/event-stream; see `encoded`."""
    return sse_of(name, await encoded(content, pictures))


def sse_of(name: str, data: bytes) -> bytes:
    """Write an event of data that is JSON already."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def _written(content: Mapping[str, Any]) -> bytes:
    """Put pictures into JSON that was written around them: as a text in it a megabyte would be copied six times."""
    pictures: list[bytes] = []

    def place(value: object) -> str:
        if not isinstance(value, bytes):
            raise TypeError(type(value).__name__)
        pictures.append(value)
        return _PLACE

    around = json.dumps(content, default=place, separators=(",", ":")).encode().split(_PLACE.encode())
    parts = around[:1]
    for picture, after in zip(pictures, around[1:], strict=True):
        parts += binascii.b2a_base64(picture, newline=False), after
    return b"".join(parts)


class EventStream(Response):
    """Answers a call with events as they come, as long as the client is there. A slow reader holds up nobody else.

    `failure` writes the last event where the call fails on its way.
    """

    media_type = "text/event-stream"

    def __init__(self, call: Call, events: AsyncGenerator[bytes], failure: Callable[[Refusal], bytes]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._call, self._events, self._failure = call, events, failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._call.begun = self.status_code
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await self._call.unless_gone(self._send(send))
            await send({"type": "http.response.body", "body": b""})  # after which the client counts as gone
            self._call.ended()
        except Cancelled as gone:
            self._call.ended(gone)
        except BaseException as error:
            self._call.ended(error)
            raise

    async def _send(self, send: Send) -> None:
        try:
            async with contextlib.aclosing(self._events) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        except Exception as error:
            event = self._failure(self._call.refused(error))
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": True})  # once all before it is taken


__all__ = ["EventStream", "encoded", "json_response", "sse", "sse_of"]
