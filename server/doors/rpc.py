"""A gRPC call in the words of OpenTelemetry's semantic conventions."""

from __future__ import annotations

import grpc

from server.caller import caller_of
from server.service import Service


def traced(service: Service, id: str, method: str, context: grpc.aio.ServicerContext, started: float) -> str:
    """Begin the trace of a call where requests are traced; returns its id. `method`: with its service's full name."""
    if service.tracing is None:
        return id
    about = {"rpc.system.name": "grpc", "rpc.method": method, "client.address": caller_of(context.peer())}
    return service.tracing.begin(id, method, started, context.invocation_metadata() or (), about)


__all__ = ["traced"]
