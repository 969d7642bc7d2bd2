"""A gRPC client that never reads: raw HTTP/2 frames (RFC 9113), with a flow-control window of 0 for every stream."""

from __future__ import annotations

import socket
from typing import Self

from tests.support.patience import PATIENCE

DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
END_STREAM = 1
_ACK, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE, _NO_WINDOW = 4, 0


class Unread:
    """A connection whose calls get headers and nothing else, for ever."""

    def __init__(self, address: str, method: str | None = None) -> None:
        """Connect; `method` is called with the first bytes, so that the connection is never idle before."""
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=PATIENCE)
        self._file = self._socket.makefile("rb")
        self._next = 1
        self.settings: dict[int, int] = {}  # the server's
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self._frame(SETTINGS, 0, 0, _INITIAL_WINDOW_SIZE.to_bytes(2, "big") + _NO_WINDOW.to_bytes(4, "big"))
        if method is not None:
            self.call(method)
        self.until(SETTINGS, _ACK)  # from now on the server knows

    def call(self, method: str, message: bytes | None = b"") -> int:
        """Begin a call; returns its stream. Without a `message`, none is ever sent."""
        stream, self._next = self._next, self._next + 2
        headers = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": "a",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        # Literal fields without indexing (RFC 7541, 6.2.2).
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())
        self._frame(HEADERS, _END_HEADERS, stream, block)
        if message is not None:
            self._frame(DATA, END_STREAM, stream, b"\0" + len(message).to_bytes(4, "big") + message)
        return stream

    def begun(self, method: str, message: bytes = b"") -> int:
        """Begin a call, and return when its first message waits for a window: its headers need none."""
        stream = self.call(method, message)
        assert self.until(HEADERS) == stream
        return stream

    def until(self, kind: int, flag: int = 0) -> int:
        """Return the stream of the next frame of this kind; pings are answered meanwhile."""
        while True:
            head = self._file.read(9)
            assert len(head) == 9, "the server has closed the connection"
            payload = self._file.read(int.from_bytes(head[:3], "big"))
            assert head[3] != DATA or not payload, "there is no window for that"
            if head[3] == PING and not head[4] & _ACK:
                self._frame(PING, _ACK, 0, payload)
            if head[3] == SETTINGS:
                for at in range(0, len(payload), 6):
                    number, value = payload[at : at + 2], payload[at + 2 : at + 6]
                    self.settings[int.from_bytes(number, "big")] = int.from_bytes(value, "big")
            if head[3] == kind and head[4] & flag == flag:
                return int.from_bytes(head[5:], "big")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
        self._socket.sendall(head + payload)


def _text(text: str) -> bytes:
    assert len(text) < 127
    return bytes((len(text),)) + text.encode()
