"""The errors that a request is refused or fails with. Each carries its gRPC code; one place maps them (doors)."""

# ruff: noqa: N818 - they are named for what has happened to the client's request

from __future__ import annotations

from pipeline.errors import InvalidRequest, LatentdError

_CLOCKS = 0.1  # seconds that a client's clock may be ahead

UNEXPECTED = "an unexpected error; the server's log has it under this request's id"


class Busy(LatentdError):
    """Too much is waiting. `retry_after` is when it is worth asking again, in seconds."""

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OverRate(Busy):
    """A key asks more often than it may."""


class Unauthenticated(LatentdError):
    """The call brings no key that counts."""

    code = "UNAUTHENTICATED"


class Forbidden(LatentdError):
    """The caller is known, and may not do this."""

    code = "PERMISSION_DENIED"


class NotMade(Busy):
    """The engine that the request needs is not there in time; it is made all the same, so that asking again helps."""


class TooLate(LatentdError):
    """The deadline has passed, or cannot be met even alone."""

    code = "DEADLINE_EXCEEDED"


class NotServing(LatentdError):
    """The server is starting or draining, or its device has failed: another server may answer."""

    code = "UNAVAILABLE"


class Draining(NotServing):
    """The server takes no new requests: it stops, or another model takes over."""

    def __init__(self) -> None:
        super().__init__("this server is draining; ask another one")


class Loading(NotServing):
    """The model is not there yet. `retry_after` is when it is worth asking again, in seconds."""

    retry_after = 1.0


class Stalled(LatentdError):
    """The client neither takes nor sends what is due; it may never hear of this."""

    code = "ABORTED"


class UnknownModel(LatentdError):
    code = "NOT_FOUND"
    field = "model"


class SwapRefused(LatentdError):
    """Another model does not take over. Where a `code` is given, it is that of the reason."""

    code = "FAILED_PRECONDITION"

    def __init__(self, message: str, code: str = code) -> None:
        super().__init__(message)
        self.code = code


class UnknownService(LatentdError):
    code = "NOT_FOUND"


class UnknownFormat(InvalidRequest):
    """No picture file is of this format. A door that does not name formats by words raises a sentence of its own."""


class PictureFailed(LatentdError):
    """A picture came out as NaN, or could not be decoded or encoded; the message names its index."""

    code = "INTERNAL"


class Cancelled(LatentdError):
    code = "CANCELLED"


def code_of(error: BaseException | None, left: float | None) -> tuple[str, str]:
    """Return the gRPC code of a request's end, and what the log says of it beside."""
    match error:
        case None:
            return "OK", ""
        case LatentdError():
            return error.code, str(error)
        case Exception():
            return "INTERNAL", repr(error)
    # Its task was cancelled, or its generator closed. A client cancels when its own deadline passes.
    return "CANCELLED" if left is None or left > _CLOCKS else "DEADLINE_EXCEEDED", ""
