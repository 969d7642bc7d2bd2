"""Finished spans on their way to the collector. Whatever becomes of it, no request waits for it and memory is bounded.

The SDK's batch processor has a thread and a queue, drops the oldest span when that is full, and counts nothing that we
could export. So room is asked for here, for all spans of a request at once: a trace is sent whole or not at all, and
what is not sent is counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from server.metrics import Metrics

log = logging.getLogger("latentd.traces")

ROOM = 2048  # spans that wait or are being sent
_QUIET = 300.0  # seconds: a collector that comes and goes fills no log


class Outbox(SpanExporter):
    """Counts spans on their way to `url`, which `exporter` sends. `take` may be called by any thread."""

    def __init__(self, exporter: SpanExporter, url: str, metrics: Metrics, room: int = ROOM) -> None:
        self._exporter, self._url, self._metrics, self._room = exporter, url, metrics, room
        self._lock = threading.Lock()
        self._waiting = 0
        self._lost = 0  # since the collector was reached last
        self._logged = False  # that they are lost
        self._quiet_until = 0.0  # monotonic seconds
        self._over = False
        self._why = _Why()
        for why in ("full", "collector", "shutdown"):
            metrics.spans_dropped(why, 0)  # a series from the start: the first loss is a rise too
        theirs = logging.getLogger("opentelemetry.exporter")  # every try would be a line
        theirs.handlers, theirs.propagate = [self._why], False

    def take(self, count: int) -> bool:
        """Return whether there is room for so many spans; if so they are to be ended now, else they are counted."""
        with self._lock:
            room = self._waiting + count <= self._room
            self._waiting += count * room
        if not room:
            self._drop(count, "full", f"{self._room} spans wait for it already")
        return room

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # it returns failures; this is for what it did not think of
            self._why.sentence, result = repr(error), SpanExportResult.FAILURE
        with self._lock:
            if self._over:  # and counted
                return result
            self._waiting -= len(spans)
        if result is not SpanExportResult.SUCCESS:
            self._drop(len(spans), "collector", self._why.sentence)
            return result
        self._metrics.spans_sent_total.inc(len(spans))
        with self._lock:
            lost, logged, self._lost, self._logged = self._lost, self._logged, 0, False
        if logged:
            log.warning("traces reach %s again; %d spans were lost", self._url, lost)
        return result

    def abandon(self) -> None:
        """Count what is still here as lost: the server ends."""
        with self._lock:
            left, self._over = self._waiting, True
        if left:
            self._drop(left, "shutdown", "it took them too slowly to be waited for at the server's end")

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True

    def _drop(self, count: int, why: str, sentence: str) -> None:
        self._metrics.spans_dropped(why, count)
        now = time.monotonic()
        with self._lock:
            self._lost += count
            if self._logged or now < self._quiet_until:
                return
            self._logged, self._quiet_until = True, now + _QUIET
        log.warning("traces do not reach %s, and requests go on without: %s", self._url, sentence)


class _Why(logging.Handler):
    """Keeps what the exporter said last: it returns no reason."""

    def __init__(self) -> None:
        super().__init__()
        self.sentence = "no reason is known"

    def emit(self, record: logging.LogRecord) -> None:
        self.sentence = " ".join(record.getMessage().split())[:400]


__all__ = ["ROOM", "Outbox"]
