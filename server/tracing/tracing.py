"""Traces for a collector that speaks OTLP over HTTP: what is begun for each request, and how it is sent.

Nothing of OpenTelemetry's is set globally: two servers in one process do not collide, and no library of ours finds a
tracer to begin spans of its own with.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterable, Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from latentd import __version__
from server.metrics import Metrics
from server.tracing.outbox import ROOM, Outbox
from server.tracing.trace import Trace
from server.tracing.traced_id import TracedId

_KEYS = ("traceparent", "tracestate")  # W3C Trace Context


def _without_value(record: logging.LogRecord) -> bool:
    """Tell of a header that cannot be read, and not what it is: it is a token as a rule."""
    record.msg, record.args = "a header of OTEL_EXPORTER_OTLP_HEADERS is left out: it is no NAME=VALUE", ()
    return True


logging.getLogger("opentelemetry.util.re").addFilter(_without_value)


class Tracing:
    """Begins a trace for each request, and sends those that have ended to the collector at `url`.

    `ratio`: of the requests whose caller did not decide. `prompts`: whether they stand in the spans. The standard's
    variables OTEL_EXPORTER_OTLP_HEADERS, .._CERTIFICATE, .._TIMEOUT, OTEL_BSP_SCHEDULE_DELAY and
    OTEL_RESOURCE_ATTRIBUTES are read by the SDK. Errors: ValueError for one that it cannot read.
    """

    def __init__(self, url: str, ratio: float, metrics: Metrics, *, prompts: bool = False) -> None:
        target = url if url.endswith("/v1/traces") else f"{url.rstrip('/')}/v1/traces"
        self._outbox = Outbox(OTLPSpanExporter(target), target, metrics)
        self._prompts = prompts
        about = {"service.name": "latentd", "service.version": __version__, "service.instance.id": str(uuid.uuid4())}
        self._provider = TracerProvider(
            ParentBased(TraceIdRatioBased(ratio)),
            Resource.create({**about, **OTELResourceDetector().detect().attributes}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._outbox, max_queue_size=ROOM))
        self._tracer = self._provider.get_tracer("latentd", __version__)
        self._propagator = TraceContextTextMapPropagator()
        logging.getLogger("opentelemetry.trace").setLevel(logging.CRITICAL)  # else headers are logged as they came

    def begin(
        self,
        request_id: str,
        name: str,
        started: float,
        sent: Iterable[tuple[str, str | bytes]],
        attributes: Mapping[str, AttributeValue],
    ) -> TracedId:
        """Begin the trace of a request; returns its id, which knows it.

        `started`: monotonic seconds. `sent`: headers or metadata, in which a caller may have said what it belongs to.
        """
        traced = TracedId(request_id)
        about = {**attributes, "latentd.request_id": request_id}
        parent = self._parent(sent)
        traced.trace = Trace(self._tracer, self._outbox, name, parent, started, about, prompts=self._prompts)
        return traced

    def _parent(self, sent: Iterable[tuple[str, str | bytes]]) -> Context:
        """Read what a caller says of its trace; nothing is taken of two, or of one that cannot be read."""
        found = {key: [str(value) for name, value in sent if name == key] for key in _KEYS}
        if len(found["traceparent"]) != 1:
            return Context()
        return self._propagator.extract(
            {"traceparent": found["traceparent"][0], "tracestate": ",".join(found["tracestate"])}, Context()
        )

    def close(self, seconds: float) -> None:
        """Send what is still here, for so many seconds at most; a collector that does not answer holds up no end."""
        sending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        sending.start()
        sending.join(seconds)
        self._outbox.abandon()


__all__ = ["Tracing"]
