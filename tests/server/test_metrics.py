"""What a scrape says: the names and labels that dashboards rely on."""

from __future__ import annotations

import re
import urllib.request

import pytest

from engines.model import Model
from latentd import Client, ServerError
from server.app import Server
from tests.support.held import eventually
from tests.support.serving import address, serving

NAMES = {
    "requests_total": {"door", "code"},
    "request_seconds": {"code"},
    "queue_seconds": set(),
    "queue_depth": set(),
    "rows_live": set(),
    "rows_capacity": set(),
    "step_seconds": set(),
    "steps_total": set(),
    "preview_first_seconds": set(),
    "images_total": set(),
    "cancelled_total": {"where"},
    "given_up_total": {"where"},
    "forecast_margin": set(),
    "pictures_paused": set(),
    "pauses_total": set(),
    "decode_backlog": set(),
    "judge_backlog": set(),
    "reading_backlog": set(),
    "seat_steps_total": set(),
    "seat_steps_delivered_total": set(),
    "nan_images_total": set(),
    "calls_open": set(),
    "calls_refused_total": {"why"},
    "calls_unread_total": set(),
    "descriptors_scarce": set(),
    "connections_ended_total": {"door", "why"},
    "swaps_total": {"outcome"},
    "engine_info": {"backend", "precision", "weights"},
}


def scrape(server: Server) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=30) as answer:
        assert answer.status == 200
        return answer.read().decode()


def sample(server: Server, name: str, **labels: str) -> float:
    for line in scrape(server).splitlines():
        found = re.fullmatch(rf"latentd_{name}\{{(.*)\}} (\S+)", line)
        if found and dict(re.findall(r'(\w+)="([^"]*)"', found[1])) == labels:
            return float(found[2])
    raise AssertionError(f"{name} {labels} is not told")


def test_a_scrape_has_every_name_with_its_labels(model: Model) -> None:
    with serving(model, seats=3) as server, Client(address(server)) as client:
        client.generate("a red apple", steps=4, images=2, preview_every=2)
        with pytest.raises(ServerError):
            client.generate("a red apple", steps=0)
        server.metrics.cancelled("queue")
        server.metrics.given_up("seat")
        server.metrics.connection_ended("metrics", "late")
        server.metrics.call_refused("caller")
        server.metrics.swap("done")
        told = scrape(server)
        for name, labels in NAMES.items():
            own = [line for line in told.splitlines() if re.match(rf"latentd_{name}(_bucket|_sum|_count)?\{{", line)]
            assert own, name
            for line in own:
                assert set(re.findall(r'(\w+)="', line)) - {"le"} == {"model", *labels}, line
        assert set(re.findall(r"^# HELP latentd_(\w+)", told, re.M)) == set(NAMES)

        own = {"model": model.id}
        eventually(lambda: sample(server, "requests_total", door="grpc", code="OK", **own), 1)
        eventually(lambda: sample(server, "requests_total", door="grpc", code="INVALID_ARGUMENT", **own), 1)
        for code in ("OK", "INVALID_ARGUMENT"):
            assert sample(server, "request_seconds_count", code=code, **own) == 1
        assert sample(server, "images_total", **own) == 2
        assert sample(server, "steps_total", **own) == sample(server, "step_seconds_count", **own) >= 4
        assert sample(server, "queue_seconds_count", **own) == 2
        assert sample(server, "preview_first_seconds_count", **own) == 1
        assert sample(server, "rows_capacity", **own) == 6 and sample(server, "rows_live", **own) == 0
        assert sample(server, "engine_info", backend="openvino", precision="f32", weights=model.digest[:12], **own) == 1
