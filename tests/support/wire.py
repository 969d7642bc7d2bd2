"""Calls with bytes instead of messages: what a client of ours would never send."""

from __future__ import annotations

from typing import Any

import grpc

from latentd import Client, ServerError
from tests.support.patience import PATIENCE

GENERATE = "/latentd.v1.Images/Generate"
BLOCKING = "/latentd.v1.Images/GenerateBlocking"
MODELS = "/latentd.v1.Images/ListModels"
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION_V1 = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def send(address: str, method: str, *messages: bytes, metadata: Any = None) -> list[bytes]:
    """All answers to `messages`. Errors: grpc.RpcError."""
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(method, _same, _same)
        return list(call(iter(messages), timeout=PATIENCE, metadata=metadata))


def refusal(address: str, method: str, *messages: bytes) -> tuple[str, str]:
    """Code and details of the error that `messages` are answered with."""
    try:
        answers = send(address, method, *messages)
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return error.code().name, error.details() or ""
    raise AssertionError(f"answered: {answers!r}")


def refused(address: str, prompt: str = "", **options: Any) -> tuple[str, str]:
    """Code and sentence of the error with which a request through latentd.Client is refused."""
    with Client(address) as client:
        try:
            pictures = client.generate(prompt, timeout=PATIENCE, **options)
        except ServerError as error:
            assert error.request_id, "an error carries the request's id"
            return error.code.name, error.message
    raise AssertionError(f"made: {pictures!r}")


def _same(message: bytes) -> bytes:
    return message
