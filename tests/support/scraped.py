"""What a scrape of our server may hold: every metric of the registry as the server makes it, with its labels."""

from __future__ import annotations

from server.metrics import Metrics

# Prometheus puts these beside whatever it scrapes.
TARGET = {"job", "instance"}
OTHERS = {"up": set[str](), "ALERTS": {"alertname", "alertstate", "severity"}}
_ENDINGS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def families() -> dict[str, set[str]]:
    """The labels of each metric, by the name that HELP has, as one that was just begun exports them."""
    told = {}
    registry = Metrics("small-things").registry
    for collector in registry._collector_to_names:
        labels = set(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            told[family.name + ("_total" if family.type == "counter" else "")] = labels
    return told


def samples() -> dict[str, set[str]]:
    """The labels of each series, by its name."""
    told = {}
    registry = Metrics("small-things").registry
    for collector in registry._collector_to_names:
        labels = set(getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            for ending in _ENDINGS[family.type]:
                told[family.name + ending] = labels | ({"le"} if ending == "_bucket" else set())
    return told
