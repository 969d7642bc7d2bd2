"""grpc.health.v1, whose watchers hold nothing up: not one another, not whoever sets a status, not the server's end.

grpcio-health-checking's servicer writes to a watcher while it holds the lock that setting needs, so that one client
that never reads keeps every other from hearing anything. Here a watcher compares what it has sent with what is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2

from server.errors import UnknownService

Status = health_pb2.HealthCheckResponse.ServingStatus

_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthServicer:
    """Answers the methods of grpc.health.v1.Health; each is named as the proto names it."""

    def __init__(self) -> None:
        self._statuses: dict[str, Status] = {}
        self._changed = asyncio.Event()  # another one after each change

    def set(self, status: Status, *services: str) -> None:
        """Set the status of services, by full name; "" is the server as a whole. Whoever watches hears of it."""
        self._statuses.update(dict.fromkeys(services, status))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def serving(self) -> bool:
        """Return whether the server as a whole serves."""
        return self._statuses.get("") == health_pb2.HealthCheckResponse.SERVING

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            raise UnknownService(
                f"service is {request.service[:64]!r}; there are: {', '.join(filter(None, self._statuses))}"
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def List(  # noqa: N802
        self, request: object, context: grpc.aio.ServicerContext
    ) -> object:
        listed = {name: health_pb2.HealthCheckResponse(status=status) for name, status in self._statuses.items()}
        # Its type stubs lack what its newest messages are.
        return health_pb2.HealthListResponse(statuses=listed)  # pyright: ignore[reportAttributeAccessIssue]

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yield the status, and again when it is another one. What changes while a message is on its way is skipped.

        The protocol has the stream stay open, whatever the status: it ends with the client or the server.
        """
        sent = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, _UNKNOWN)
            if status != sent:
                sent = status
                yield health_pb2.HealthCheckResponse(status=status)
            else:
                await changed.wait()
