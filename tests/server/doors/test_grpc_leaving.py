"""Clients that cancel, run out of time, or are killed: what they leave behind is nothing."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from engines.model import Model
from latentd import AsyncClient, Client, ServerError
from latentd.events import Queued, Started
from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub
from server.access.policy import Policy
from server.app import Server
from server.doors.calls import CallBounds, Calls
from server.doors.grpc import ImagesServicer
from server.job import Job
from server.limits import Limits
from server.pace.median import Median
from server.service import Service
from server.wish import LaneKey
from tests.support.held import Held, eventually
from tests.support.jobs import Running, alone, running
from tests.support.patience import PATIENCE
from tests.support.serving import address, metric, serving

ROOT = Path(__file__).parents[3]


def nothing_left(server: Server) -> None:
    """No job, no seat, no latents that wait to be decoded."""
    device = server.service.device
    assert device
    eventually(lambda: len(device._jobs), 0)
    assert not device._decoding.pictures and not device._batcher.waiting
    assert all(tenant is None for lane in device._batcher.lanes.values() for tenant in lane.tenants)
    assert metric(server, "rows_live") == 0 and metric(server, "queue_depth") == 0


def ended(server: Server, code: str) -> float:
    return metric(server, "requests_total", door="grpc", code=code)


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


def quick(server: Server, row: float = 1e-6) -> None:
    """A row takes so many seconds, says the pace: how busy this machine is admits and refuses nobody."""
    device = server.service.device
    assert device
    device._pace._rows[LaneKey(*device.sizes[0], 1)] = Median([row] * 9)


@pytest.mark.parametrize("seats", [1, 2])
def test_a_deadline_that_passes_in_the_queue_or_in_a_seat(seats: int, wired: Model, held: Held) -> None:
    with (
        serving(wired, seats=seats) as server,
        Client(address(server)) as client,
        grpc.insecure_channel(address(server)) as channel,
    ):
        quick(server)
        held.hold()
        held.runs.clear()
        first = client.stream("a red apple", steps=3)
        next(first)
        held.begun()
        second = ImagesStub(channel).Generate(pb.GenerateRequest(prompt="a red apple", steps=4), timeout=PATIENCE)
        assert next(second).HasField("queued")
        held.let()
        held.begun()
        device = server.service.device
        assert device
        (job,) = [job for job in device._jobs if job.deadline is not None]
        job.deadline = time.monotonic()
        job.wake()
        held.release()
        with pytest.raises(grpc.RpcError):
            list(second)
        assert second.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        eventually(lambda: ended(server, "DEADLINE_EXCEEDED"), 1)
        assert list(first)
        nothing_left(server)
        where = {1: [0, 1], 2: [0, 1, 2, 3]}[seats]
        assert held.runs == [[0, 1], where, [0, 1]], "rows of each step"
        assert metric(server, "cancelled_total", where="queue" if seats == 1 else "seat") == 1


def test_a_deadline_that_cannot_be_met_is_refused_at_once(wired: Model, held: Held) -> None:
    with serving(wired) as server, Client(address(server)) as client:
        held.hold()
        first = client.stream("a red apple", steps=2)
        next(first)
        held.begun()  # an idle device would try
        quick(server, 2.0)
        with pytest.raises(ServerError, match=r"takes about 40.\d\d s by itself") as late:
            client.generate("a red apple", steps=10, timeout=5)
        assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED and late.value.retry_after is None
        held.release()
        assert list(first)


def test_clients_that_leave_at_once(wired: Model, held: Held) -> None:
    with serving(wired, seats=1, queue_seconds=3600) as server:
        held.hold()
        with Client(address(server)) as client:
            first = client.stream("a red apple", steps=2)
            next(first)
            held.begun()
            with grpc.insecure_channel(address(server)) as channel:
                for call in [ImagesStub(channel).Generate(pb.GenerateRequest(steps=100)) for _ in range(20)]:
                    call.cancel()
            eventually(lambda: server._door._images._live, 1)
            held.release()
            assert list(first)
        nothing_left(server)
        assert len(held.encoded) == 2, "prompt and negative prompt of the first"


class Context:
    """gRPC's side of a call, as far as the door uses it."""

    def __init__(self) -> None:
        self.trailing: tuple[tuple[str, str], ...] = ()
        self.callbacks: list[Callable[[Context], None]] = []

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self.trailing = metadata

    def peer(self) -> str:
        return "ipv4:127.0.0.1:50412"

    def time_remaining(self) -> None:
        return None

    def add_done_callback(self, callback: Callable[[Context], None]) -> None:
        self.callbacks.append(callback)


@pytest.mark.parametrize("events", [1, 2])
def test_a_client_that_leaves_while_a_message_is_on_its_way(events: int, wired: Model, held: Held) -> None:
    """gRPC then lets go of the method, which waits where it yields and hears of nothing."""

    async def leave(at_work: Running) -> None:
        service = Service("m", Limits(), at_work.metrics)
        service.device = at_work.device
        images, context = ImagesServicer(service), Context()
        # As the door has it: whose call it is.
        await Calls(CallBounds(), at_work.metrics, Policy()).entered(context)  # type: ignore[arg-type]
        call = images.Generate(pb.GenerateRequest(prompt="a cat", steps=100), context)  # type: ignore[arg-type]
        for _ in range(events):
            await anext(call)
        await asyncio.to_thread(held.begun)
        assert not images.idle.is_set()
        for callback in context.callbacks:
            callback(context)
        assert images.idle.is_set()
        held.release()
        eventually(lambda: at_work.leftovers, [])
        await call.aclose()

    with running(wired, ready=held.hold) as at_work:
        held.runs.clear()
        asyncio.run(leave(at_work))
        assert len(held.runs) == 1
        assert at_work.metric("requests_total", door="grpc", code="CANCELLED") == 1


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

    before = set(threading.enumerate())  # threads of a server before it may be about to end
    with serving(wired, seats=2, queue_seconds=86400) as server:
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
        assert sum("pictures" in thread.name for thread in set(threading.enumerate()) - before) <= 4
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
