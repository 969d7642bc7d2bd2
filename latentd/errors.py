"""ServerError: every way in which a call fails, as one sentence with its gRPC code."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from latentd.channel import is_local

if TYPE_CHECKING:
    from latentd.picture import Picture

# What gRPC's own transport says, in the words of its C core; a server's UNAVAILABLE has words of its own.
_NO_ANSWER = (
    "failed to connect",
    "dns resolution failed",
    "domain name not found",
    "connections to all backends failing",
)
_LATE = ("", "deadline exceeded", "stream removed (deadline exceeded)")
_OTHER_PORTS = {8000: "the page", 8002: "the metrics"}  # of a server as it is started without flags

_LOST = (
    "socket closed",
    "connection reset",
    "broken pipe",
    "goaway",
    "keepalive",
    "stream removed",
    "ping timeout",
    "too many pings",
)


class ServerError(Exception):
    """Says why a call did not end well.

    code         gRPC status code
    message      one sentence; the server's own where it gave one
    retry_after  seconds after which the server wants to be asked again; None where it did not say
    request_id   the server's name for the request, as in its log; "" where it did not say
    pictures     those of the request that had arrived before
    """

    def __init__(
        self, code: grpc.StatusCode, message: str, retry_after: float | None = None, request_id: str = ""
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.request_id = request_id
        self.pictures: list[Picture] = []


def server_error(error: Any, address: str) -> ServerError:
    """Return the ServerError of a grpc.RpcError, of either of gRPC's two Python stacks, from a call to `address`."""
    code: grpc.StatusCode = error.code()
    trailers = {key: value for key, value in error.trailing_metadata() or ()}
    return ServerError(
        code,
        _sentence(code, error.details() or "", address),
        retry_delay(trailers.get("grpc-status-details-bin", b"")),
        str(trailers.get("x-request-id", "")),
    )


def _sentence(code: grpc.StatusCode, details: str, address: str) -> str:
    said = details.lower()
    if code is grpc.StatusCode.UNAVAILABLE and (why := _mistrust(said)):
        return f"no TLS with {address}: {why}"
    if code is grpc.StatusCode.UNAVAILABLE and said.startswith("failed to connect") and "socket closed" in said:
        return f"{address} closes the connection: it may want TLS (tls_ca), or a client's certificate (tls_client_cert)"
    if code is grpc.StatusCode.UNAVAILABLE and any(words in said for words in _NO_ANSWER):
        return f"no latentd server answers at {address}{_hint(address)}"
    if code is grpc.StatusCode.UNAVAILABLE and (not said or any(words in said for words in _LOST)):
        return f"the connection to {address} was lost"
    if code is grpc.StatusCode.INTERNAL and "rst_stream" in said:  # a balancer's word for a server that is gone
        return f"the server behind {address} was lost"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and said in _LATE:
        return "the timeout passed before the request was done"
    if code is grpc.StatusCode.UNIMPLEMENTED and (said.startswith("unknown service") or said == "method not found!"):
        return f"the server at {address} is not a latentd server"
    if code is grpc.StatusCode.UNAUTHENTICATED and "with a key alone" in said:
        return f"{address}: this server takes calls with a key alone; give one as key, or in LATENTD_KEY"
    return details or f"the server at {address} ended the call with {code.name}"


def _mistrust(said: str) -> str:
    """Say why a handshake failed, of what gRPC's C core says; "" where none did."""
    if "hostname verification check failed" in said:
        return "the server's certificate is for another name"
    if "handshake failed" not in said:
        return ""
    if "wrong_version_number" in said:
        return "the server does not encrypt there"
    if "certificate" in said:
        return "the server's certificate is none that tls_ca, or a public authority, vouches for"
    return "the handshake failed"


def closed_error() -> ServerError:
    """Return the ServerError of a call on a closed client; its calls that ran when it was closed have this code too."""
    return ServerError(grpc.StatusCode.CANCELLED, "this client is closed")


def _hint(address: str) -> str:
    """Say which port is meant, or how to start a server, for who has one: a clone, or the package with its server."""
    for port, what in _OTHER_PORTS.items():
        if address.endswith(f":{port}"):
            return f"; {port} is usually the port of {what}, and gRPC's is 8001"
    if not is_local(address):
        return ""
    clone = (Path(__file__).parent.parent / "Makefile").is_file()
    return f"; start one with `{'make serve' if clone else 'latentd serve'}`"


def retry_delay(status: bytes) -> float | None:
    """Return the seconds that the RetryInfo of a serialised google.rpc.Status asks for; None without one.

    Read field by field, because the generated classes of google.rpc come in packages that a client need not install:
    Status.details = 3 (Any), RetryInfo.retry_delay = 1 (Duration).
    """
    try:
        for detail in _fields(status, 3):
            packed = AnyMessage.FromString(detail)
            if packed.type_url.endswith("/google.rpc.RetryInfo"):
                for delay in _fields(packed.value, 1):
                    duration = Duration.FromString(delay)
                    return duration.seconds + duration.nanos / 1e9
    except DecodeError:
        pass  # a broken hint must not hide the error it came with
    return None


def _fields(message: bytes, number: int) -> Iterable[bytes]:
    """Yield the length-delimited fields `number` of a serialised message."""
    known = UnknownFieldSet(Empty.FromString(message))
    return [f.data for f in known if f.field_number == number and isinstance(f.data, bytes)]
