"""Clients that cancel, run out of time, or are killed: what they leave behind is nothing."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import grpc
import numpy as np
import pytest

from engines.model import Model
from latentd import AsyncClient, Client, ServerError
from latentd.events import Queued, Started
from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub
from server.app import Server
from server.job import Job
from tests.server.held import Held, eventually
from tests.server.jobs import alone
from tests.serving import address, serving

ROOT = Path(__file__).parent.parent.parent


def metric(server: Server, name: str, **labels: str) -> float | None:
    labels = {"model": server.service.model_id, **labels}
    return server.metrics.registry.get_sample_value(f"latentd_{name}", labels)


def nothing_left(server: Server) -> None:
    """No job, no seat, no latents that wait to be decoded."""
    device = server.service.device
    assert device
    eventually(lambda: len(device._jobs), 0)
    assert not device._finished and not device._batcher.waiting
    assert all(tenant is None for lane in device._batcher.lanes.values() for tenant in lane.tenants)
    assert metric(server, "rows_live") == 0 and metric(server, "queue_depth") == 0


def ended(server: Server, code: str) -> float:
    return metric(server, "requests_total", door="grpc", code=code) or 0.0


def test_cancelled_while_it_sits_it_computes_no_further_step(wired: Model, held: Held) -> None:
    with serving(wired) as server, Client(address(server)) as client:
        held.hold()
        held.runs.clear()
        events = client.stream("a red apple", steps=100)
        assert isinstance(next(events), Queued)
        held.begun()
        events.close()
        eventually(lambda: ended(server, "CANCELLED"), 1)
        held.release()
        nothing_left(server)
        assert len(held.runs) == 1
        assert metric(server, "cancelled_total", where="seat") == 1


def test_cancelled_while_it_waits_it_never_computes(wired: Model, held: Held, model: Model) -> None:
    with serving(wired, seats=1) as server, Client(address(server)) as client:
        held.hold()
        held.runs.clear()
        first = client.stream("a red apple", steps=3, seed=1)
        next(first)
        held.begun()
        second = client.stream("the blue cat", steps=100, images=8)
        queued = next(second)
        assert isinstance(queued, Queued) and metric(server, "queue_depth") == 8
        second.close()
        eventually(lambda: ended(server, "CANCELLED"), 1)
        held.release()
        images = [event for event in first if isinstance(event, pb.Image)]
        nothing_left(server)
    assert len(images) == 1 and len(held.runs) == 3
    assert len(held.encoded) == 2, "prompt and negative prompt of the first"


@pytest.mark.parametrize("seats", [1, 2])
def test_a_deadline_that_passes_in_the_queue_or_in_a_seat(seats: int, wired: Model, held: Held) -> None:
    with serving(wired, seats=seats) as server, Client(address(server)) as client:
        held.hold()
        held.runs.clear()
        first = client.stream("a red apple", steps=3)
        next(first)
        held.begun()
        if seats == 2:  # the second sits down before the step that is held
            held.let()
            held.begun()
        with pytest.raises(ServerError) as late:
            client.generate("a red apple", steps=50, timeout=0.25)
        assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: ended(server, "DEADLINE_EXCEEDED"), 1)
        held.release()
        assert list(first)
        nothing_left(server)
        assert len(held.runs) == 3, "not one more than the first needs"


def test_a_deadline_that_cannot_be_met_is_refused_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    device = server.service.device
    assert device
    monkeypatch.setitem(device._row_seconds, device.sizes[0], 2.0)
    with Client(address(server)) as client, pytest.raises(ServerError, match=r"takes about 40.00 s by itself") as late:
        client.generate("a red apple", steps=10, timeout=5)
    assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED and late.value.retry_after is None


def test_a_client_that_leaves_while_its_first_message_is_on_its_way(wired: Model, held: Held) -> None:
    """Nobody hears of it in the method, which waits where it yields."""
    with serving(wired, seats=1) as server:
        held.hold()
        with Client(address(server)) as client:
            first = client.stream("a red apple", steps=2)
            next(first)
            held.begun()
            with grpc.insecure_channel(address(server)) as channel:
                calls = [ImagesStub(channel).Generate(pb.GenerateRequest(steps=100)) for _ in range(20)]
                for call in calls:
                    call.cancel()
            eventually(lambda: server._door._images._live, 1)
            held.release()
            list(first)
        nothing_left(server)
        assert held.runs[-1] and len(held.encoded) <= 2


def test_two_hundred_cancelled_requests_leave_no_memory_and_no_thread(
    wired: Model, held: Held, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: weakref.WeakSet[Job] = weakref.WeakSet()
    remember = Job.__post_init__

    def remembered(job: Job) -> None:
        remember(job)
        jobs.add(job)

    monkeypatch.setattr(Job, "__post_init__", remembered)

    async def cancel_many(server: Server) -> None:
        async with AsyncClient(address(server)) as client:
            for number in range(200):
                events = client.stream("a red apple", steps=100, seed=number, images=1 + number % 3, preview_every=1)
                assert isinstance(await anext(events), Queued)
                await events.aclose()

    with serving(wired, seats=2) as server:
        with Client(address(server)) as client:
            client.generate("the cat", steps=1)
            threads = set(threading.enumerate())
            asyncio.run(cancel_many(server))
            (picture,) = client.generate("a red apple", seed=1)
            nothing_left(server)
            eventually(lambda: ended(server, "CANCELLED"), 200)
        gc.collect()
        assert len(jobs) == 0
        assert {thread for thread in threading.enumerate() if "pictures" not in thread.name} <= threads
        assert sum("pictures" in thread.name for thread in threading.enumerate()) <= 4
    np.testing.assert_array_equal(np.asarray(picture.image), alone(model, prompt="a red apple", seed=1))


_CLIENT = """
import sys
from latentd import Client
for event in Client(sys.argv[1]).stream("a red apple", steps=100, images=3):
    print(type(event).__name__, flush=True)
"""


def test_a_killed_client_leaves_nothing(wired: Model, held: Held, model: Model) -> None:
    with serving(wired, seats=2) as server:
        held.hold()
        held.runs.clear()
        threads = set(threading.enumerate())
        command = [sys.executable, "-c", _CLIENT, address(server)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout and client.stdout.readline() == "Queued\n"
            assert client.stdout.readline() == f"{Started.__name__}\n"
            held.begun()
            assert metric(server, "rows_live") == 4 or metric(server, "rows_live") == 2
            client.send_signal(signal.SIGKILL)
        eventually(lambda: ended(server, "CANCELLED"), 1)
        held.release()
        nothing_left(server)
        assert len(held.runs) == 1
        assert set(threading.enumerate()) <= threads
        with Client(address(server)) as after:
            (picture,) = after.generate("the cat", seed=2)
    np.testing.assert_array_equal(np.asarray(picture.image), alone(model, prompt="the cat", seed=2))
