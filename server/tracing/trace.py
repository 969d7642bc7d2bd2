"""A trace is one request as spans, made at its end from times that the server has measured anyway.

The door's span is begun with the request, as its trace's id stands in the log from then on. Below it is a span for each
part of the request's time (server/events.py), and the steps are events of the span `denoise`. The loop that makes the
steps notes when each ended, and knows nothing else of this.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.util.types import AttributeValue

from server.job import Job
from server.tracing.outbox import Outbox

MOST_EVENTS = 64  # of a span; where there are more steps an event tells of several
# Codes that are the server's fault, as the semantic conventions for gRPC servers have it: what HTTP calls 5xx.
_FAULTS = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


class _Part(NamedTuple):
    """Holds a part of a job's time, in monotonic seconds. `last`: the job came no further."""

    job: Job
    name: str
    begun: float
    ended: float
    last: bool


class Trace:
    """Holds the trace of one request, whose door's span begins with it. `prompts`: whether they may be told."""

    def __init__(
        self,
        tracer: Tracer,
        outbox: Outbox,
        name: str,
        parent: Context,
        started: float,
        attributes: dict[str, AttributeValue],
        *,
        prompts: bool,
    ) -> None:
        """Begin a door's span at `started`, monotonic seconds."""
        self._tracer, self._outbox, self._prompts = tracer, outbox, prompts
        self._since = time.time_ns() - time.monotonic_ns()  # 1970 to the monotonic clock's zero
        self._span: Span = tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=self._epoch(started))
        context = self._span.get_span_context()
        self.id = format_trace_id(context.trace_id) if context.is_valid else ""  # "": OTEL_SDK_DISABLED
        self._rpc = "rpc.method" in attributes
        self.jobs: list[Job] = []  # that were admitted for the request

    @property
    def recorded(self) -> bool:
        """Return whether its spans are wanted, and it has not ended."""
        return self._span.is_recording()

    def set(self, name: str, value: AttributeValue) -> None:
        """Set an attribute of the door's span."""
        self._span.set_attribute(name, value)

    def end(self, code: str, reason: str, now: float) -> None:
        """End at `now`, monotonic seconds, with the request's gRPC code and what the log says of it beside."""
        jobs, self.jobs = self.jobs, []
        parts = [part for job in jobs for part in _parts(job, now)] if self.recorded else []
        if not self.recorded or not self._outbox.take(1 + len(parts)):
            return
        fault = Status(StatusCode.ERROR, reason or code) if code in _FAULTS else None
        context = set_span_in_context(self._span, Context())
        for part in parts:
            span = self._tracer.start_span(part.name, context, start_time=self._epoch(part.begun))
            if part.name == "denoise":
                self._tell_steps(span, part.job)
            if fault and part.last:
                span.set_status(fault)
            span.end(self._epoch(part.ended))
        if jobs:
            self._span.set_attributes(_about(jobs[0], self._prompts))
        if self._rpc:
            self.set("rpc.response.status_code", code)
        if code != "OK":
            self.set("error.type", code)
        if reason:
            self.set("latentd.reason", reason)
        if fault:
            self._span.set_status(fault)
        self._span.end(self._epoch(now))

    def _tell_steps(self, span: Span, job: Job) -> None:
        evaluations = list(job.timings.evaluations or ())  # the device may still be at it
        size = max(1, math.ceil(len(evaluations) / MOST_EVENTS))
        for first in range(0, len(evaluations), size):
            told = evaluations[first : first + size]
            last = told[-1]
            about = {"picture": last.picture, "step": last.step, "seats": last.seats}
            span.add_event("step", about if size == 1 else about | {"evaluations": len(told)}, self._epoch(last.ended))

    def _epoch(self, seconds: float) -> int:
        """Turn monotonic seconds into nanoseconds since 1970."""
        return self._since + round(1e9 * seconds)


def _parts(job: Job, now: float) -> Iterator[_Part]:
    """Yield the parts of a job's time that took any."""
    begun, over = job.arrived, bool(job.timings.delivered)
    parts = [(name, milliseconds / 1e3) for name, milliseconds in job.timings.parts(now).items() if milliseconds]
    for name, seconds in parts:
        yield _Part(job, name, begun, begun + seconds, not over and name == parts[-1][0])
        begun += seconds


def _about(job: Job, prompts: bool) -> dict[str, AttributeValue]:
    """Tell of a job what the log tells of it."""
    wish = job.wish
    about: dict[str, AttributeValue] = {
        "latentd.size": f"{wish.size[0]}x{wish.size[1]}",
        "latentd.images": wish.images,
        "latentd.steps": wish.steps,
        "latentd.guidance": wish.guidance,
        "latentd.sampler": wish.sampler,
        "latentd.seed": wish.seed,
        "latentd.seats_shared": job.timings.seats_shared,
    }
    return about | {"latentd.prompt": wish.words} if prompts else about


__all__ = ["MOST_EVENTS", "Trace"]
