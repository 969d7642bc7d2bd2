"""Errors that are somebody's input, each with the gRPC status that it means at a door."""

from __future__ import annotations

_LONGEST = 1200  # characters of a message; a tensor's name, or a library's words, may have millions


class LatentdError(Exception):
    """Carries a sentence fit for the person who caused it. `code` names a gRPC status."""

    code = "INTERNAL"
    field: str | None = None  # of the request, as ImageRequest names it; None: no one field, or an unknown one

    def __str__(self) -> str:
        """Return one line: files and tensors may be named with newlines, or with what moves a terminal's cursor."""
        text = super().__str__()
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST - 400]} ... {text[-395:]}"
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class CheckpointError(LatentdError):
    """Means that a checkpoint cannot be read, or asks for something that latentd does not do."""

    code = "FAILED_PRECONDITION"


class InvalidRequest(LatentdError):  # noqa: N818 (a sentence at a door, not a fault)
    """A request's field is outside its limits; the message names field, value and limit."""

    code = "INVALID_ARGUMENT"

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
