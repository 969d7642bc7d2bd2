"""A call is one HTTP request to make pictures: its id, clock and end, the same at each of HTTP's doors."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from pipeline.errors import InvalidRequest, LatentdError
from server.device.loop import Device
from server.doors.http.errors import Refusal, door_of, renamed, status_of
from server.errors import Cancelled, TooLate
from server.events import Done, Event, Image
from server.job import Job
from server.mailbox import collect
from server.request import ImageRequest
from server.service import Accepted, Service
from server.tracing.traced_id import trace_of

DEADLINE = "x-deadline-ms"
_MOST_MS = 10**12  # about thirty years

Result = TypeVar("Result")


class Call:
    """Holds one call on its way. Whatever ends it, its job does not run any longer. `counted`: see `answering`."""

    def __init__(self, service: Service, request: Request, *, counted: bool = True) -> None:
        self.started = time.monotonic()
        self.id: str = request.state.request_id
        if counted and service.tracing is not None:
            self.id = service.tracing.begin(*_server_span(self.id, request, self.started))
        self.door = door_of(request.url.path)
        self.caller: str = request.state.caller
        self.request = request
        self._service = service
        self._job: Job | None = None
        self._reported = False
        self.begun: int | None = None  # the status of an answer that has begun, and can have no other

    async def submit(
        self,
        request: ImageRequest,
        names: Mapping[str, str] | None = None,
        *,
        wait: bool = True,
        device: Device | None = None,
    ) -> Accepted:
        """Submit what is asked for. `names`: what the door calls fields. `wait`: until previews can be made.

        `device`: as for Service.submit. Errors: those of Service.submit, and InvalidRequest for a deadline that is no
        number.
        """
        try:
            with self._service.holding(request.model) if device is None else contextlib.nullcontext(device) as held:
                if request.preview_every and wait and self._service.begin_previews(held) is not None:
                    await self.in_time(self._service.previews, held)
                left = self._seconds_left()
                left = None if left is None else left - (time.monotonic() - self.started)
                submitting = self._submit(request, left, held)
                # Pictures and LoRAs are read first, which nobody should wait for who has gone.
                read = request.init_image or request.style_image or request.loras
                return await (self.unless_gone(submitting) if read else submitting)
        except LatentdError as error:
            raise renamed(error, names or {}) from None

    async def _submit(self, request: ImageRequest, left: float | None, device: Device) -> Accepted:
        """Submit, and know the job before anybody else does: whoever goes meanwhile leaves none behind."""
        accepted = await self._service.submit(request, self.id, left, self.started, self.caller, device)
        self._job = accepted.job
        return accepted

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events of what was submitted. Errors: those that it failed with.

        The device looks at deadlines between two steps, and a step may be long: the client hears in time all the same.
        """
        assert self._job
        events, deadline = self._service.events(self._job), self._job.deadline
        while True:
            try:
                async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise TooLate("the deadline passed") from None
            yield event

    async def pictures(self) -> tuple[list[Image], Done]:
        """Wait for all pictures. Errors: those of `events`, and Cancelled when the client goes away."""
        return await self.unless_gone(collect(self.events()))

    async def unless_gone(self, work: Awaitable[Result]) -> Result:
        """Wait for `work`, as long as the client does. Errors: Cancelled when the client goes away."""
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():  # also where that ended the work: to a connection that is gone everything is sent at once
                raise Cancelled("the client went away")
            return working.result()
        finally:
            for task in (working, gone):
                task.cancel()
            await asyncio.gather(working, gone, return_exceptions=True)

    async def in_time(self, work: Callable[..., Awaitable[Result]], *values: object) -> Result:
        """Return what `work` makes of `values`, as long as the client waits and its deadline has not passed.

        Errors: Cancelled when the client goes away; TooLate; those of `work`.
        """
        left = self._seconds_left()
        try:
            async with asyncio.timeout(None if left is None else left - (time.monotonic() - self.started)):
                return await self.unless_gone(work(*values))
        except TimeoutError:
            raise TooLate("the deadline passed") from None

    async def _gone(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    def ended(self, error: BaseException | None = None) -> None:
        """Report the call's end, once, and leave its job not running."""
        if self._reported:
            return
        self._reported = True
        if trace := trace_of(self.id):
            trace.set("http.response.status_code", self.begun or (200 if error is None else status_of(error)))
        self._service.ended(self.door, error, self._job, self.id, self.started)

    def refused(self, error: Exception) -> Refusal:
        """Report an error as the call's end; returns what the client is told."""
        self.ended(error)
        return Refusal.of(error, self.id)

    def _seconds_left(self) -> float | None:
        sent = self.request.headers.get(DEADLINE)
        if sent is None:
            return None
        if not (sent.isascii() and sent.isdigit() and 0 < int(sent[:16]) <= _MOST_MS):
            raise InvalidRequest(f"{DEADLINE} is {sent[:64]!r}; it takes milliseconds, 1 to {_MOST_MS}", DEADLINE)
        return int(sent[:16]) / 1e3


def _server_span(id: str, request: Request, started: float) -> tuple[Any, ...]:
    """Return what Tracing.begin takes of a request. Paths are names here: what is counted has none with a parameter."""
    method, path = request.method, request.url.path
    about = {
        "http.request.method": method,
        "http.route": path,
        "url.path": path,
        "url.scheme": request.url.scheme,
        "client.address": request.state.address,
    }
    return id, f"{method} {path}", started, request.headers.items(), about


def answering(
    service: Service, behaviour: Callable[[Call], Awaitable[Response]], *, counted: bool = True
) -> Callable[..., Awaitable[Response]]:
    """Make an endpoint of a behaviour: the call ends with its error, if not with its answer or its stream.

    `counted`: it makes pictures, and its end is counted and logged.
    """

    async def endpoint(request: Request) -> Response:
        call = Call(service, request, counted=counted)
        try:
            return await behaviour(call)
        except Exception as error:
            refusal = call.refused(error) if counted else Refusal.of(error, call.id)
            headers = {name.decode(): value.decode() for name, value in refusal.headers()}
            return Response(refusal.content(call.door, call.id), refusal.status, headers)
        except BaseException as error:
            if counted:
                call.ended(error)
            raise

    return endpoint


__all__ = ["DEADLINE", "Call", "answering"]
