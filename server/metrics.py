"""Prometheus metrics, prefix latentd_, label model throughout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    make_asgi_app,
)

from engines.model import Model

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 400)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)

# Gauges that a device fills, and those that are of a model's parts.
_OF_A_DEVICE = (
    "queue_depth", "pictures_paused", "forecast_margin", "decode_backlog", "seats_live", "seats_capacity",
    "rows_live", "rows_capacity",
)  # fmt: skip

# What is of doors and threads, whatever model is served: its label stays that of the model served at start.
_OF_THE_SERVER = (
    "calls_open", "calls_unread_total", "descriptors_scarce", "reading_backlog", "ready", "stalled_seconds",
    "queue_wait_seconds", "memory_limit_bytes", "spans_sent_total",
)  # fmt: skip


class Metrics:
    """Holds one server's metrics, in a registry of its own: two servers in one process (a test) do not collide."""

    def __init__(self, model_id: str, beside: Metrics | None = None) -> None:
        """Begin with nothing counted. `beside`: the same server's metrics of another model; they share a registry."""
        disable_created_metrics()  # a second series a metric, which nobody asks for
        self.registry = CollectorRegistry() if beside is None else beside.registry
        self._families: dict[str, Any] = {} if beside is None else beside._families
        self._model = model_id
        self._first = model_id if beside is None else beside._first
        if beside is None:
            ProcessCollector(registry=self.registry)  # of any process, by the names that they have everywhere
        self.ready = self._make(Gauge, "ready", "1 while health says SERVING")
        self._requests = self._make(Counter, "requests_total", "Requests ended", "door", "code")
        self._request_seconds = self._make(
            Histogram, "request_seconds", "Request to last event", "code", buckets=_SECONDS
        )
        self.queue_seconds = self._make(Histogram, "queue_seconds", "Wait for a seat", buckets=_SECONDS)
        self.preview_first_seconds = self._make(
            Histogram, "preview_first_seconds", "Request to first preview", buckets=_SECONDS
        )
        self.step_seconds = self._make(Histogram, "step_seconds", "One evaluation of a lane", buckets=_STEP_SECONDS)
        self.steps_total = self._make(Counter, "steps_total", "Evaluations of a lane")
        self.seat_steps_total = self._make(Counter, "seat_steps_total", "Evaluations of pictures")
        self.seat_steps_delivered_total = self._make(
            Counter, "seat_steps_delivered_total", "Those of pictures that were delivered"
        )
        self.images_total = self._make(Counter, "images_total", "Pictures delivered")
        self.nan_images_total = self._make(Counter, "nan_images_total", "Pictures that came out as NaN")
        self._cancelled = self._make(Counter, "cancelled_total", "Jobs cancelled or expired", "where")
        self.queue_depth = self._make(Gauge, "queue_depth", "Pictures that wait for a seat")
        self.queue_wait_seconds = self._make(
            Gauge, "queue_wait_seconds", "Forecast of the time until every request that waits now has a seat"
        )
        self._given_up = self._make(
            Counter, "given_up_total", "Jobs that could not meet their deadlines any more", "where"
        )
        self.pictures_paused = self._make(
            Gauge, "pictures_paused", "Pictures that wait for a seat and have had one before"
        )
        self.pauses_total = self._make(
            Counter, "pauses_total", "Pictures that gave up their seats to others for a while"
        )
        self.forecast_margin = self._make(Gauge, "forecast_margin", "What forecasts are multiplied by")
        self.decode_backlog = self._make(Gauge, "decode_backlog", "Finished pictures that wait for the decoder")
        self.reading_backlog = self._make(
            Gauge, "reading_backlog", "Pictures of requests that are being read, or wait for it"
        )
        self.judge_backlog = self._make(Gauge, "judge_backlog", "Pictures that the judge has not scored yet")
        self.seats_live = self._make(Gauge, "seats_live", "Seats in which pictures sit, of all lanes")
        self.seats_capacity = self._make(Gauge, "seats_capacity", "Seats of a lane: who has other sizes has others")
        self.rows_live = self._make(Gauge, "rows_live", "UNet rows in use")
        self.rows_capacity = self._make(Gauge, "rows_capacity", "UNet rows of full seats, of whatever sizes")
        self.calls_open = self._make(Gauge, "calls_open", "Calls of all methods that are open")
        self._calls_refused = self._make(
            Counter, "calls_refused_total", "Calls refused: their number, rate or key", "why"
        )
        self.calls_unread_total = self._make(Counter, "calls_unread_total", "Calls given up, for nobody read them")
        self.descriptors_scarce = self._make(Gauge, "descriptors_scarce", "1 while calls are refused for want of them")
        self._connections_ended = self._make(
            Counter, "connections_ended_total", "HTTP connections ended because of their bounds", "door", "why"
        )
        self.stalled_seconds = self._make(Gauge, "stalled_seconds", "Time that the device has had work and done none")
        self.memory_limit_bytes = self._make(Gauge, "memory_limit_bytes", "Memory that the process may use")
        self.spans_sent_total = self._make(Counter, "spans_sent_total", "Spans that the collector of traces took")
        self._spans_dropped = self._make(Counter, "spans_dropped_total", "Spans that it did not get", "why")
        self._engine_info = self._make(Gauge, "engine_info", "Always 1", "backend", "precision", "weights")
        self._files_stale = self._make(
            Gauge, "files_stale", "1 while keys or certificates have changed and cannot be read", "file"
        )
        self._swaps = self._make(Counter, "swaps_total", "Swaps of the served model that ended", "outcome")
        if beside is not None:  # the device fills them when it does something
            gauges = self.queue_depth, self.pictures_paused, self.seats_live, self.rows_live, self.decode_backlog
            for gauge in gauges:
                gauge.set(0)

    def _make(self, kind: type, name: str, text: str, *labels: str, **options: Any) -> Any:
        if (metric := self._families.get(name)) is None:
            metric = kind(f"latentd_{name}", text, ["model", *labels], registry=self.registry, **options)
            self._families[name] = metric
        return metric if labels else metric.labels(self._first if name in _OF_THE_SERVER else self._model)

    def beside(self, model_id: str) -> Metrics:
        """Return the same server's metrics of another model."""
        return Metrics(model_id, self)

    def forget_others(self) -> None:
        """Leave out the gauges of models that are not here, all but this one; what was counted stays."""
        for family in (self._families[name] for name in _OF_A_DEVICE):
            here = {sample.labels["model"] for metric in family.collect() for sample in metric.samples}
            for model in here - {self._model}:
                family.remove(model)

    def request(self, door: str, code: str, seconds: float, model: str = "") -> None:
        """Count a request that ended after so many seconds. `model`: which drew it; "": the one of these metrics."""
        self._requests.labels(model or self._model, door, code).inc()
        self._request_seconds.labels(model or self._model, code).observe(seconds)

    def cancelled(self, where: str) -> None:
        self._cancelled.labels(self._model, where).inc()

    def given_up(self, where: str) -> None:
        self._given_up.labels(self._model, where).inc()

    def call_refused(self, why: str) -> None:
        self._calls_refused.labels(self._model, why).inc()

    def connection_ended(self, door: str, why: str) -> None:
        self._connections_ended.labels(self._model, door, why).inc()

    def spans_dropped(self, why: str, count: int) -> None:
        self._spans_dropped.labels(self._model, why).inc(count)

    def file_stale(self, file: str, stale: Callable[[], bool]) -> None:
        """Tell of a file that is read anew when it changes whether that failed, as `stale` says at each scrape."""
        self._files_stale.labels(self._model, file).set_function(stale)

    def swap(self, outcome: str) -> None:
        self._swaps.labels(self._model, outcome).inc()

    def engine(self, model: Model) -> None:
        """Tell which model is served; of any other nothing is told from then on."""
        self._engine_info.clear()
        self._engine_info.labels(self._model, model.backend.name, model.backend.precision, model.digest[:12]).set(1)

    @property
    def app(self) -> Any:
        """Return an ASGI app that answers scrapes, on any path."""
        return make_asgi_app(self.registry, disable_compression=True)  # it would be done in the event loop
