"""What a scrape says: the names and labels that dashboards rely on."""

from __future__ import annotations

import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from engines.model import Model
from latentd import Client, ServerError
from server.app import Server
from tests.support.held import Held, eventually
from tests.support.serving import address, quick, serving

NAMES = {
    "requests_total": {"door", "code"},
    "request_seconds": {"code"},
    "queue_seconds": set(),
    "queue_depth": set(),
    "queue_wait_seconds": set(),
    "ready": set(),
    "stalled_seconds": set(),
    "memory_limit_bytes": set(),
    "rows_live": set(),
    "rows_capacity": set(),
    "seats_live": set(),
    "seats_capacity": set(),
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
    "spans_sent_total": set(),
    "spans_dropped_total": {"why"},
    "swaps_total": {"outcome"},
    "files_stale": {"file"},
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
        server.metrics.spans_dropped("full", 1)
        server.metrics.swap("done")
        server.metrics.file_stale("keys", lambda: True)
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
        assert sample(server, "seats_capacity", **own) == 3 and sample(server, "seats_live", **own) == 0
        assert sample(server, "ready", **own) == 1 and sample(server, "stalled_seconds", **own) == 0
        assert re.search(r"^process_resident_memory_bytes \S+$", told, re.M)
        assert 10**8 < sample(server, "memory_limit_bytes", **own) < 10**14
        assert sample(server, "engine_info", backend="openvino", precision="f32", weights=model.digest[:12], **own) == 1


def test_the_predicted_wait_is_until_the_last_one_sits(wired: Model, held: Held) -> None:
    """Nothing where nobody waits, else what those who sit and wait take; servers are added by it (deploy/)."""
    with serving(wired, seats=1) as server, ThreadPoolExecutor() as pool, Client(address(server)) as client:
        quick(server, row=0.5)
        own = {"model": wired.id}
        held.hold()
        try:
            asked = [pool.submit(client.generate, "a red apple", steps=8)]
            held.begun()
            assert sample(server, "queue_wait_seconds", **own) == 0
            asked.append(pool.submit(client.generate, "a red apple", steps=8))
            eventually(lambda: sample(server, "queue_depth", **own), 1)
            one = sample(server, "queue_wait_seconds", **own)
            asked.append(pool.submit(client.generate, "a red apple", steps=8))
            eventually(lambda: sample(server, "queue_depth", **own), 2)
            two = sample(server, "queue_wait_seconds", **own)
        finally:
            held.release()
        assert all(picture.result() for picture in asked)
        eventually(lambda: sample(server, "queue_wait_seconds", **own), 0)
    row = 0.5  # seconds; guided, a step has two
    assert one == pytest.approx(8 * 2 * row, abs=2 * row) and two == pytest.approx(2 * one, abs=2 * row)
