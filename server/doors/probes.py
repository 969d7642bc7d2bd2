"""A port for probes that speak neither TLS nor keys, as Kubernetes' own: gRPC's health, and nothing else."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2

from pipeline.errors import LatentdError
from server.address import joined, refuse_taken
from server.doors.grpc import OPTIONS, ConnectionBounds, GrpcDoor
from server.doors.handlers import handlers

CONNECTIONS = 16  # at once
_BOUNDS = ConnectionBounds(connections=CONNECTIONS, streams=16)
_LARGEST = 4 << 10  # bytes of a message: a service's name


class ProbeDoor:
    """Tells what the gRPC door tells of health, if it is opened. The order of calls is `open`, `start`, `close`."""

    def __init__(self, door: GrpcDoor) -> None:
        self._door = door
        self._server: grpc.aio.Server | None = None

    def open(self, host: str, port: int) -> int:
        """Bind; returns the port. Errors: LatentdError when it is taken."""
        refuse_taken("health", host, port)
        self._server = grpc.aio.server(options=[*OPTIONS, *_BOUNDS.options(_LARGEST)])
        service = health_pb2.DESCRIPTOR.services_by_name["Health"]
        self._server.add_generic_rpc_handlers((handlers(service, self._door.health, self._door.checks, keyed=False),))
        try:
            return self._server.add_insecure_port(joined(host, port))
        except RuntimeError as error:
            raise LatentdError(f"health port {joined(host, port)} cannot be opened: {error}") from None

    async def start(self) -> None:
        if self._server is not None:
            await self._server.start()

    async def close(self) -> None:
        if self._server is not None:
            await self._server.stop(0)


__all__ = ["ProbeDoor"]
