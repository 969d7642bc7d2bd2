"""The HTTP door: the page, OpenAI's images API, AUTOMATIC1111's, and health, on one port."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterable

from server.access.certificates import Certificates
from server.access.policy import Policy
from server.doors.asgi import AsgiServer, Bounds
from server.doors.calls import Calls
from server.doors.http.guard import App, Guard, Receive, Scope, Send
from server.service import Service


class HttpDoor:
    """Listens from `open` on, answers from `start` on, takes requests once the service is ready.

    `calls`: those of all doors. `most`: bytes of a request's body. `allowed`: names beside the server's own that
    requests may come for. `policy` says whose a request is.
    """

    def __init__(
        self, service: Service, calls: Calls, most: int, allowed: Iterable[str], bounds: Bounds, policy: Policy
    ) -> None:
        self._service, self._calls, self._bounds, self._policy = service, calls, bounds, policy
        self._most, self._allowed = most, tuple(allowed)
        self._app: asyncio.Task[App] | None = None
        self._guard: Guard | None = None
        self._server: AsgiServer | None = None

    def open(self, host: str, port: int, certificates: Certificates | None = None) -> int:
        """Bind, with TLS if there are `certificates`; returns the port. Errors: LatentdError when it is taken."""
        self._guard = Guard(self._answer, host, self._allowed, self._calls.of, self._policy)
        ended = functools.partial(self._service.metrics.connection_ended, "http")
        self._server = AsgiServer(self._guard, "http", self._bounds, ended, certificates)
        return self._server.open(host, port)

    async def start(self) -> None:
        """Answer. FastAPI is imported meanwhile, beside the model's loading: it takes longer than the ports do."""
        assert self._server
        self._app = asyncio.create_task(asyncio.to_thread(self._build))
        await self._server.start()

    async def drain(self, grace: float) -> None:
        """Give requests that run `grace` seconds, and readers a third of that; others are answered meanwhile."""
        if self._guard is not None and self._server is not None:
            self._server.hurry(grace / 3)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._guard.idle.wait(), grace)

    async def close(self, farewell: float) -> None:
        """Close the door. Whoever is still there has `farewell` seconds to hear why."""
        if self._server is not None:
            await self._server.close(farewell)
        if self._app is not None:
            await asyncio.wait([self._app])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._app
        app = await asyncio.shield(self._app)
        await app(scope, receive, send)

    def _build(self) -> App:
        from server.doors.http.app import application

        return application(self._service, self._most)
