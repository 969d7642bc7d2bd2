"""A collector of traces in this process: OTLP over HTTP, as far as exporting spans goes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.patience import PATIENCE


class Collector:
    """Keeps what comes. `status`: what it answers with. While `answers` is not set nobody has an answer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.status = 200
        self.answers = threading.Event()
        self.answers.set()
        self.asked = threading.Semaphore(0)  # released with each request that comes
        self.bodies: list[bytes] = []  # of those that were taken
        self.resources: list[dict[str, Any]] = []
        self.spans: list[Span] = []
        self._changed = threading.Condition()

    def take(self, path: str, body: bytes) -> int:
        self.asked.release()
        self.answers.wait(PATIENCE)
        if path != "/v1/traces" or self.status != 200:
            return 404 if self.status == 200 else self.status
        with self._changed:
            self.bodies.append(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resources.append(values(resource.resource.attributes))
                self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            self._changed.notify_all()
        return 200

    def trace(self, request_id: str) -> tuple[Span, dict[str, Span]]:
        """The span of a request's door and those below it, by name, once all are here: a trace comes whole."""

        def door() -> Span | None:
            return next((s for s in self.spans if values(s.attributes).get("latentd.request_id") == request_id), None)

        with self._changed:
            assert self._changed.wait_for(door, PATIENCE), "no such trace has come"
            found = door()
            assert found
            return found, {span.name: span for span in self.spans if span.parent_span_id == found.span_id}


def values(attributes: Any) -> dict[str, Any]:
    """Attributes as a dictionary."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """A collector until the end of the block, on a port that the system chose."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = collector.take(self.path, body)
            answer = ExportTraceServiceResponse().SerializeToString()
            with contextlib.suppress(OSError):  # who does not wait any longer
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    collector = Collector(f"http://127.0.0.1:{listening.server_address[1]}")
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield collector
    finally:
        collector.answers.set()
        listening.shutdown()
        thread.join()
        listening.server_close()
