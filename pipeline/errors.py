"""Errors that are somebody's input, each with the gRPC status that it means at a door."""

from __future__ import annotations


class LatentdError(Exception):
    """An error with a sentence fit for the person who caused it. `code` names a gRPC status."""

    code = "INTERNAL"


class CheckpointError(LatentdError):
    """A checkpoint that cannot be read, or asks for something that latentd does not do."""

    code = "FAILED_PRECONDITION"


class InvalidRequest(LatentdError):  # noqa: N818 (a sentence at a door, not a fault)
    """A request's field is outside its limits; the message names field, value and limit."""

    code = "INVALID_ARGUMENT"
