"""A call is one request on its way: its id, clock, jobs and end, alone on a gRPC call or among others on a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import grpc

from pipeline.errors import InvalidRequest
from server.device.loop import Device
from server.doors.calls import current_caller
from server.doors.oip.infer_request import InferRequest, Run
from server.doors.oip.statistics import Statistics
from server.doors.request_id import request_id
from server.doors.rpc import traced
from server.errors import TooLate
from server.events import Event
from server.job import Job
from server.service import Accepted, Service


class Call:
    """Holds one call. Whatever ends it, its jobs do not run any longer. `ids`: its client's names for it."""

    def __init__(self, service: Service, method: str, context: grpc.aio.ServicerContext, ids: list[str]) -> None:
        self._service, self._context = service, context
        self._started = time.monotonic()
        self._jobs: list[Job] = []
        self._statistics: Statistics | None = None
        self._over = False
        self.id = traced(service, request_id(ids), method, context, self._started)

    async def submit(self, request: InferRequest, statistics: Statistics, device: Device) -> list[Accepted]:
        """Submit a request's runs to a device that is held, all or none.

        Errors: those of Service.submit, in the protocol's words.
        """
        self._statistics = statistics
        caller, accepted = current_caller(), []
        for run in request.runs:
            times = [left for left in (self._context.time_remaining(), request.timeout) if left is not None]
            left = min(times) if times else None
            try:
                one = await self._service.submit(run.request, self.id, left, self._started, caller, device)
                accepted.append(one)
            except InvalidRequest as error:
                raise _placed(error, run, len(request.runs)) from None
            self._jobs.append(accepted[-1].job)
        return accepted

    async def events(self, job: Job) -> AsyncGenerator[Event]:
        """Yield a job's events. Errors: those that it failed with.

        The device looks at deadlines between two steps, and a step may be long: the client hears in time all the same.
        """
        events, deadline = self._service.events(job), job.deadline
        while True:
            try:
                async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise TooLate("the deadline passed") from None
            yield event

    def ended(self, error: BaseException | None = None) -> None:
        """Report the call's end, once, and leave its jobs not running."""
        if self._over:
            return
        self._over = True
        job = self._jobs[0] if self._jobs else None
        for each in self._jobs:
            each.cancel()  # of no effect on a job that is done
        self._service.ended("oip", error, job, self.id, self._started, self._context.time_remaining())
        if self._statistics is not None:
            seconds = time.monotonic() - self._started
            if error is None:
                last = max((job.timings for job in self._jobs), key=lambda timings: timings.delivered)
                self._statistics.succeeded(seconds, sum(job.wish.images for job in self._jobs), last)
            else:
                self._statistics.failed(seconds)
        self._jobs = []  # gRPC's context and what it calls back hold each other


def _placed(error: InvalidRequest, run: Run, runs: int) -> InvalidRequest:
    """Say which elements of the request an error is about, where not all of them are alike."""
    if runs == 1:
        return error
    last = run.first + (run.request.images or 1) - 1
    where = f"element {run.first}" if last == run.first else f"elements {run.first} to {last}"
    return InvalidRequest(f"{where}: {error}", error.field)
