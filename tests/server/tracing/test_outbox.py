"""A collector that is away, slow, full or refuses: requests, memory and the server's end do not wait for it."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from engines.model import Model
from latentd import Client
from server.app import Server
from server.metrics import Metrics
from server.settings import Settings, SettingsError
from server.tracing.outbox import Outbox
from tests.support.collector import collecting
from tests.support.held import eventually
from tests.support.patience import PATIENCE
from tests.support.serving import address, metric, serving

ROOT = Path(__file__).parents[3]


def draw(server: Server, times: int = 1) -> None:
    with Client(address(server)) as client:
        for _ in range(times):
            assert client.generate("a", steps=1)


def traces(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "latentd.traces"]


def test_a_collector_that_never_answers_holds_up_no_request_and_no_end(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(2 * PATIENCE))
    with collecting() as collector:
        collector.answers.clear()
        with serving(model, otlp=collector.url, stopping=1.0) as server:
            draw(server)
            assert collector.asked.acquire(timeout=PATIENCE)
            draw(server, 3)
        assert not collector.bodies, "the server ended before anybody let the collector answer"
        dropped = metric(server, "spans_dropped_total", why="shutdown")
        assert dropped > 8 and metric(server, "spans_sent_total") == 0
        assert len(traces(caplog)) == 1 and "too slowly" in traces(caplog)[0]


def test_a_collector_that_is_not_there_is_told_once(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
    with serving(model, otlp=url) as server:
        for count in (1, 2):
            before = metric(server, "spans_dropped_total", why="collector")
            draw(server, count)
            eventually(lambda before=before: metric(server, "spans_dropped_total", why="collector") > before, True)
    (line,) = traces(caplog)
    assert line.startswith(f"traces do not reach {url}/v1/traces, and requests go on without: ")
    theirs = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").parent
    assert theirs and not theirs.propagate, "what the exporter says of each try goes nowhere else"


def test_a_collector_that_refuses_and_comes_back(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
    with collecting() as collector, serving(model, otlp=f"{collector.url}/v1/traces") as server:
        collector.status = 400
        draw(server)
        eventually(lambda: metric(server, "spans_dropped_total", why="collector") > 0, True)
        collector.status = 200
        draw(server)
        eventually(lambda: metric(server, "spans_sent_total") > 0, True)
        eventually(lambda: len(traces(caplog)), 2)
    first, second = traces(caplog)
    assert "code: 400" in first and second.startswith(f"traces reach {collector.url}/v1/traces again; ")


class Stuck(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise RuntimeError("unheard of")

    def shutdown(self) -> None:
        pass


def test_there_is_room_for_whole_requests_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics("m")

    def dropped(why: str) -> float | None:
        return metrics.registry.get_sample_value("latentd_spans_dropped_total", {"model": "m", "why": why})

    outbox = Outbox(Stuck(), "http://c", metrics, room=10)
    assert outbox.take(6) and not outbox.take(6) and outbox.take(4) and not outbox.take(1)
    assert dropped("full") == 7
    span = ReadableSpan("a")
    assert outbox.export([span] * 6) is SpanExportResult.FAILURE and dropped("collector") == 6
    assert outbox.take(6), "what was sent or lost leaves room"
    outbox.abandon()
    assert dropped("shutdown") == 10
    assert len(traces(caplog)) == 1, "told once"


def test_an_extra_that_is_missing_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("server.tracing.tracing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError) as told:
        Server(Settings(otlp="http://localhost:4318"))
    assert str(told.value).startswith("otlp is 'http://localhost:4318', and what sends traces is not installed (opent")
    assert "traces]'" in str(told.value)


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096"), ("OTEL_SPAN_EVENT_COUNT_LIMIT", "x")]
)
def test_a_variable_that_cannot_be_read_is_a_sentence(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=r"^otlp is 'http://localhost:4318', and a variable OTEL_\.\. of the env"):
        Server(Settings(otlp="http://localhost:4318"))


def test_a_token_that_is_no_header_is_told_without_its_value(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def build() -> None:  # gRPC's server asks for the loop that it belongs to
        Server(Settings(otlp="http://localhost:4318"))

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization: Bearer s3cret")
    asyncio.run(build())
    assert "a header of OTEL_EXPORTER_OTLP_HEADERS is left out" in caplog.text and "s3cret" not in caplog.text


IMPORTED = """
import importlib, sys
for name in ("server.__main__", "server.app", "server.doors.http.app", "server.tracing.tracing"):
    print(*(part for part in sys.modules if part.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))))
    importlib.import_module(name)
print(*(part for part in sys.modules if part.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))))
"""


def test_where_traces_are_off_nothing_of_it_is_imported() -> None:
    ran = subprocess.run([sys.executable, "-c", IMPORTED], cwd=ROOT, capture_output=True, text=True, check=True)
    *off, on = ran.stdout.split("\n")[:-1]
    assert off == [""] * 4 and "opentelemetry.sdk.trace" in on.split()
