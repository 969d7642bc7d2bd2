"""A client that never reads: HTTP/2 by hand, with a window of 0, so that the server may send no byte of an answer.

gRPC's own clients read whatever comes into buffers of theirs. Frames and headers: RFC 9113 and RFC 7541, of which three
frames and literal headers are enough.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType

from google.protobuf.message import Message

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING = 0, 1, 4, 6
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_INITIAL_WINDOW_SIZE = 4  # of SETTINGS
GENERATE = "/latentd.v1.Images/Generate"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame: 24 bits of length, its kind and flags, 32 bits of stream, the payload."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header(name: str, value: str) -> bytes:
    """Return a header field without indexing, name and value as plain bytes of fewer than 127 each."""
    return b"\0" + b"".join(bytes([len(word)]) + word.encode() for word in (name, value))


class Unread:
    """Holds one connection whose calls are never read. It answers the server's pings, as it would if it only slept."""

    def __init__(self, address: str, source: str = "") -> None:
        """Connect to `address`, "host:port", from the address `source`."""
        host, _, port = address.rpartition(":")
        self._authority = address
        self._socket = socket.create_connection((host.strip("[]"), int(port)), 10, (source, 0) if source else None)
        self._socket.settimeout(None)
        self._streams = 1
        window = struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0)
        self._socket.sendall(_PREFACE + frame(_SETTINGS, 0, 0, window))
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._answer, daemon=True)
        self._reader.start()

    def call(self, message: Message, method: str = GENERATE) -> None:
        """Begin a call with one message."""
        fields = {":method": "POST", ":scheme": "http", ":path": method, ":authority": self._authority}
        fields |= {"te": "trailers", "content-type": "application/grpc"}
        body = message.SerializeToString()
        with self._lock:
            stream, self._streams = self._streams, self._streams + 2
            self._socket.sendall(
                frame(_HEADERS, _END_HEADERS, stream, b"".join(header(*field) for field in fields.items()))
                + frame(_DATA, _END_STREAM, stream, struct.pack(">BI", 0, len(body)) + body)
            )

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._reader.join()

    def __enter__(self) -> Unread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as stream:
            while len(head := stream.read(9)) == 9:
                length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
                payload = stream.read(length)
                if kind in (_SETTINGS, _PING) and not flags & _ACK:
                    with self._lock:
                        self._socket.sendall(frame(kind, _ACK, 0, payload if kind == _PING else b""))
