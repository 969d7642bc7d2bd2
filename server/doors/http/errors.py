"""What HTTP says of an error: its status, and the shape of its body at each door. One place maps codes."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InvalidRequest, LatentdError
from server.errors import UNEXPECTED, Busy, Loading

log = logging.getLogger("latentd.door")

OPENAI, A1111, PAGE = "openai", "a1111", "page"  # doors, as metrics and the log name them
_PATHS = {"/v1/": OPENAI, "/sdapi/": A1111}  # everything else is the page's

# A gRPC code's status (google.rpc.Code), and OpenAI's type and code for it.
_CODES: dict[str, tuple[int, str, str]] = {
    "UNAUTHENTICATED": (401, "invalid_request_error", "invalid_api_key"),
    "PERMISSION_DENIED": (403, "invalid_request_error", "insufficient_permissions"),
    "INVALID_ARGUMENT": (400, "invalid_request_error", "invalid_value"),
    "FAILED_PRECONDITION": (400, "invalid_request_error", "failed_precondition"),
    "NOT_FOUND": (404, "invalid_request_error", "model_not_found"),
    "RESOURCE_EXHAUSTED": (429, "rate_limit_error", "rate_limit_exceeded"),
    "CANCELLED": (499, "server_error", "cancelled"),
    "INTERNAL": (500, "server_error", "server_error"),
    "UNAVAILABLE": (503, "server_error", "unavailable"),
    "DEADLINE_EXCEEDED": (504, "server_error", "deadline_exceeded"),
}


class HttpError(LatentdError):
    """A request is refused as HTTP, before anybody reads what it asks for. `status` is its own."""

    def __init__(self, status: int, message: str, code: str = "INVALID_ARGUMENT") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class UnknownPath(HttpError):  # noqa: N818 - as UnknownField
    """No path of any door has that name."""

    def __init__(self, path: str) -> None:
        super().__init__(404, f"the path {path[:64]} does not exist on this server", "NOT_FOUND")


class UnknownField(InvalidRequest):
    """No field of this door has that name."""


class MissingField(InvalidRequest):
    """A field that must be there is not."""


# What OpenAI calls these, beside what it calls their code.
_OPENAI_CODES: dict[type[Exception], str] = {
    UnknownPath: "unknown_url",
    UnknownField: "unknown_parameter",
    MissingField: "missing_required_parameter",
}


@dataclass(frozen=True)
class Refusal:
    """Holds what is said of an error, in no door's shape."""

    status: int
    code: str  # gRPC's
    message: str
    field: str | None
    retry_after: float | None  # seconds
    openai: tuple[str, str]  # type and code

    @classmethod
    def of(cls, error: Exception, request_id: str) -> Refusal:
        """Tell of an error; one that nobody expected is logged, and told with one fixed sentence."""
        if not isinstance(error, LatentdError):
            log.error("unexpected error", exc_info=error, extra={"request": request_id})
            error = LatentdError(UNEXPECTED)
        _, kind, code = _CODES.get(error.code, _CODES["INTERNAL"])
        code = _OPENAI_CODES.get(type(error), code)
        retry_after = error.retry_after if isinstance(error, Busy | Loading) else None
        return cls(status_of(error), error.code, str(error), error.field, retry_after, (kind, code))

    def body(self, door: str, request_id: str) -> dict[str, Any]:
        """Return the body as the clients of `door` expect it."""
        if door == OPENAI:
            kind, code = self.openai
            return {"error": {"message": self.message, "type": kind, "param": self.field, "code": code}}
        if door == A1111:  # modules/api/api.py, handle_exception
            return {"error": self.code, "detail": self.message, "body": "", "errors": self.message}
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "field": self.field,
                "retry_after": self.retry_after,
                "request_id": request_id,
            }
        }

    def headers(self) -> list[tuple[bytes, bytes]]:
        retry = [] if self.retry_after is None else [(b"retry-after", b"%d" % math.ceil(self.retry_after))]
        return [(b"content-type", b"application/json"), *retry]

    def challenge(self, door: str) -> list[tuple[bytes, bytes]]:
        """Return the header that says which credentials are wanted; a browser would ask for Basic's by itself."""
        if self.code != "UNAUTHENTICATED":
            return []
        return [(b"www-authenticate", b'Basic realm="latentd"' if door == A1111 else b'Bearer realm="latentd"')]

    def content(self, door: str, request_id: str) -> bytes:
        return json.dumps(self.body(door, request_id)).encode()


def status_of(error: BaseException) -> int:
    """Return the status that an error is answered with, or would be if its client were still there."""
    match error:
        case HttpError():
            return error.status
        case LatentdError():
            return _CODES.get(error.code, _CODES["INTERNAL"])[0]
        case Exception():
            return _CODES["INTERNAL"][0]
    return _CODES["CANCELLED"][0]


def door_of(path: str) -> str:
    """Name the door that a path belongs to."""
    return next((door for start, door in _PATHS.items() if path.startswith(start)), PAGE)


def renamed(error: LatentdError, names: Mapping[str, str]) -> LatentdError:
    """Say an error in a door's words. `names`: what the door calls the fields of ImageRequest, where it differs."""
    name = names.get(error.field or "")
    if not error.args:
        return error
    sentence = error.args[0]
    if name:
        sentence = re.sub(rf"^{error.field}(?= (is|has|ends|cannot)\b)", name, sentence)
        error.field = name
    for ours, theirs in names.items():
        if "_" in ours:  # no word of a sentence, but another field that it names
            sentence = re.sub(rf"\b{ours}\b", theirs, sentence)
    error.args = (sentence, *error.args[1:])
    return error


__all__ = [
    "A1111",
    "OPENAI",
    "PAGE",
    "HttpError",
    "MissingField",
    "Refusal",
    "UnknownField",
    "UnknownPath",
    "door_of",
    "renamed",
    "status_of",
]
