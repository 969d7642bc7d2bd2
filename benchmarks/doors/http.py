"""An HTTP client that does no more than it must."""

from __future__ import annotations

import asyncio
import json
from typing import Any


class Http:
    """Keeps one connection, as a client's pool does, and does no more with an answer than read it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: dict[str, Any]) -> int:
        """Return the bytes of the answer. Raises SystemExit for one that is an error."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        reader, writer = self._streams
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if not answer.startswith("http/1.1 200 "):
            raise SystemExit(answer)
        if "transfer-encoding: chunked" not in answer:
            return len(await reader.readexactly(int(answer.partition("content-length: ")[2].split("\r\n")[0])))
        size = 0
        while part := int(await reader.readline(), 16):
            size += len(await reader.readexactly(part + 2)) - 2
        await reader.readexactly(2)
        return size

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
