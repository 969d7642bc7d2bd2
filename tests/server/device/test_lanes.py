"""A lane is made beside the steps: the others go on, and whoever waits for it keeps every right of those who wait."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from engines.errors import BackendError, DeviceError, NoEngine
from engines.model import Model
from server.batching.admission import Admission
from server.errors import Busy, NotMade
from server.events import Done, Started
from server.job import Job
from server.wish import LaneKey
from tests.support.held import Held, eventually, raising, wrapped
from tests.support.jobs import alone, box_of, running
from tests.support.patience import PATIENCE
from tests.support.serving import serving

APPLE = {"prompt": "a red apple", "seed": 1, "steps": 4}
CAT = {"prompt": "a blue cat", "seed": 2, "steps": 6, "guidance": 1.0}


def long(chunks: int, **fields) -> dict:
    """A request of so many chunks: the words are a token each, and a chunk has room for fourteen."""
    return {"prompt": "red apple " * (7 * chunks - 3), "seed": 3, "steps": 2, "long_prompt": True, **fields}


class Gate:
    """What a stepper's making waits for; `made` are the threads that came by."""

    def __init__(self, held: Held) -> None:
        self.begun, self.go, self.made = threading.Semaphore(0), threading.Event(), list[str]()
        held.before_denoiser = self._pass

    def _pass(self) -> None:
        self.made.append(threading.current_thread().name)
        self.begun.release()
        assert self.go.wait(PATIENCE), "the test forgot a lane"

    def reached(self) -> None:
        """Returns when one more lane is being made."""
        assert self.begun.acquire(timeout=PATIENCE), "no lane was begun"


def lane(chunks: int) -> str:
    return f"lane 24x24x{chunks}"


def test_nothing_is_stepped_to_learn_what_the_backend_knows(
    wired: Model, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(wired):
        assert held.runs and held.decoded == 1
    held.runs.clear()
    monkeypatch.setattr(held, "row_seconds", lambda *lane: 0.25)
    with running(wired) as at_work:
        assert at_work.device.full_step == 0.25 * 4 and not held.runs and held.decoded == 1


def test_others_step_while_a_lane_is_made(
    wired: Model, held: Held, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "latentd.lanes"), running(wired) as at_work:
        gate = Gate(held)
        waiting = at_work.submit(**long(3, images=3))
        gate.reached()
        assert at_work.metric("rows_capacity") == 4
        for asked in (APPLE, CAT, APPLE):
            job = at_work.submit(**asked)
            assert isinstance(box_of(job).end(), Done)
            np.testing.assert_array_equal(box_of(job).images[0], alone(model, **asked))
        assert box_of(waiting).events == [] and at_work.metric("queue_depth") == 3
        assert not any("x3 made_in_s=" in message for message in caplog.messages)
        gate.go.set()
        assert isinstance(box_of(waiting).end(), Done)
        for index, image in box_of(waiting).images.items():
            np.testing.assert_array_equal(image, alone(model, **long(3, seed=3 + index)))
        assert at_work.metric("rows_capacity") == 4 and gate.made == [lane(3)]
        again = at_work.submit(**long(3))
        assert isinstance(box_of(again).end(), Done) and len(gate.made) == 1
    assert [message.split("=")[:2] for message in caplog.messages] == [
        ["lane", f"24x24x{chunks} made_in_s"] for chunks in (1, 3)
    ]


def test_a_backend_that_wants_one_thread_has_its_lanes_made_by_it(wired: Model, held: Held, model: Model) -> None:
    held.makes_beside = False
    with running(wired) as at_work:
        gate = Gate(held)
        gate.go.set()
        job = at_work.submit(**long(2))
        assert isinstance(box_of(job).end(), Done) and gate.made == ["device"]
        np.testing.assert_array_equal(box_of(job).images[0], alone(model, **long(2)))


def cancelled(job: Job, wake: Callable[[], None]) -> None:
    job.cancel()


def expired(job: Job, wake: Callable[[], None]) -> None:
    job.deadline = time.monotonic() + 0.01  # the device looks at it, sleeps, and is woken by nobody
    wake()


@pytest.mark.parametrize(
    ("goes", "told"),
    [(cancelled, ("CANCELLED", "the client went away")), (expired, ("DEADLINE_EXCEEDED", "the deadline passed"))],
)
def test_who_goes_while_the_lane_is_made_is_gone_at_once(
    goes: Callable[[Job, Callable[[], None]], None], told: tuple[str, str], wired: Model, held: Held, model: Model
) -> None:
    with running(wired) as at_work:
        gate = Gate(held)
        gone, stays = at_work.submit(**long(2)), at_work.submit(**long(2, seed=9))
        gate.reached()
        goes(gone, at_work.device._wake)
        assert box_of(gone).error() == told, "the lane is still being made"
        assert at_work.metric("queue_depth") == 1 and at_work.metric("cancelled_total", where="queue") == 1
        gate.go.set()
        assert isinstance(box_of(stays).end(), Done) and box_of(gone).started == []
        np.testing.assert_array_equal(box_of(stays).images[0], alone(model, **long(2, seed=9)))
        assert gate.made == [lane(2)] and at_work.leftovers == []


def test_a_lane_that_nobody_waits_for_any_more_is_kept_or_not_begun(wired: Model, held: Held) -> None:
    with running(wired) as at_work:
        gate = Gate(held)
        first = at_work.submit(**long(2))
        gate.reached()
        second = at_work.submit(**long(3))
        for job in (first, second):
            job.cancel()
            assert box_of(job).error()[0] == "CANCELLED"
        gate.go.set()
        for _ in range(2):
            assert isinstance(box_of(at_work.submit(**long(2))).end(), Done)
        assert gate.made == [lane(2)]


def test_the_device_sleeps_until_the_next_deadline(wired: Model, held: Held) -> None:
    with running(wired) as at_work:
        device, gate = at_work.device, Gate(held)
        jobs = [at_work.submit(**long(2), deadline=time.monotonic() + 3600 * hours) for hours in (2, 1)]
        gate.reached()
        assert 1800 < (device._patience() or 0) <= 3600
        jobs[0].cancelled = jobs[1].cancelled = True
        assert device._patience() == 0
        device._wake()
        for job in jobs:
            box_of(job).error()
        assert device._patience() is None
        # gRPC's longest: 99,999,999 hours, where Condition.wait raises OverflowError
        far = at_work.submit(**long(2), deadline=time.monotonic() + 3600.0 * 99_999_999)
        assert device._patience() == threading.TIMEOUT_MAX
        device._wake()
        gate.go.set()
        assert isinstance(box_of(far).end(), Done) and at_work.deaths == 0


def test_stopping_waits_for_no_compiler(wired: Model, held: Held) -> None:
    with running(wired) as at_work:
        gate = Gate(held)
        job = at_work.submit(**long(2))
        gate.reached()
        assert at_work.device.makes_lane
    thread = at_work.device._lanes._thread
    assert box_of(job).error() == ("UNAVAILABLE", "the server stopped before the request was done")
    assert thread is not None and thread.daemon and at_work.device.makes_lane and at_work.leftovers == []
    gate.go.set()
    thread.join(PATIENCE)
    assert not at_work.device.makes_lane and at_work.deaths == 0


CANNOT = ("INTERNAL", "the engine for 24x24 and a prompt of 2 chunks cannot be made")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BackendError("some inner words"), CANNOT),
        (MemoryError(), CANNOT),
        (NoEngine("run `make engines ..`"), ("FAILED_PRECONDITION", "run `make engines ..`")),  # for them to read
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("beside", [True, False])
def test_a_lane_that_cannot_be_made_fails_those_who_wait_for_it(
    error: Exception, told: tuple[str, str], beside: bool, wired: Model, held: Held, model: Model
) -> None:
    held.makes_beside = beside
    with running(wired, ready=held.hold) as at_work:
        neighbour = at_work.submit(**APPLE)
        held.begun()  # so that both wait when the lane is begun
        tries: list[None] = []
        held.before_denoiser = lambda: (tries.append(None), raising(error)())
        jobs = [at_work.submit(**long(2, images=2)), at_work.submit(**long(2))]
        held.release()
        for job in jobs:
            assert box_of(job).error() == told and box_of(job).started == [] and box_of(job).ends == 1
        assert isinstance(box_of(neighbour).end(), Done) and at_work.leftovers == []
        assert len(tries) == 1, "once for all who waited"
        held.before_denoiser = lambda: None
        again = at_work.submit(**long(2))
        assert isinstance(box_of(again).end(), Done) and at_work.deaths == 0
        np.testing.assert_array_equal(box_of(again).images[0], alone(model, **long(2)))


def test_a_process_without_room_for_a_thread_tries_again(
    wired: Model, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(wired) as at_work:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda self: raising(RuntimeError("can't start new thread"))())
            assert box_of(at_work.submit(**long(2))).error() == CANNOT
        assert isinstance(box_of(at_work.submit(**long(2))).end(), Done) and at_work.deaths == 0


def test_a_device_that_fails_while_a_lane_is_made(wired: Model, held: Held) -> None:
    with running(wired, ready=held.hold) as at_work:
        neighbour = at_work.submit(**APPLE)
        held.begun()
        held.before_denoiser = raising(DeviceError("lost"))
        waiting = at_work.submit(**long(2))
        held.release()
        for job in (waiting, neighbour):
            assert box_of(job).error() == ("UNAVAILABLE", "the device failed: lost")
        at_work.device._thread.join(PATIENCE)
        assert at_work.deaths == 1 and at_work.leftovers == []


def test_those_who_wait_for_a_lane_keep_their_order(wired: Model, held: Held) -> None:
    """By priority, then by arrival; of lanes too: the one that the first in the queue waits for is made next."""
    order: list[str] = []
    with running(wired, seats=1) as at_work:
        at_work.device._jobs._steps = 10**9  # of a usual request: in four of them who waits rises by a level
        gate = Gate(held)
        jobs = {"first": at_work.submit(**long(3))}
        gate.reached()
        for name, chunks, priority in (("third", 3, 0), ("second", 3, 5), ("two", 2, -1), ("four", 4, 7)):
            jobs[name] = at_work.submit(**long(chunks, priority=priority))
        for name, job in jobs.items():
            posted = job.mailbox.post

            def post(event, name=name, posted=posted) -> None:
                if isinstance(event, Started):
                    order.append(name)
                posted(event)

            job.mailbox.post = post  # type: ignore[method-assign]
        gate.go.set()
        for job in jobs.values():
            assert isinstance(box_of(job).end(), Done)
    assert [name for name in order if name not in ("two", "four")] == ["second", "first", "third"]
    assert gate.made == [lane(3), lane(4), lane(2)]


def test_those_who_wait_for_a_lane_count_at_the_door(wired: Model, held: Held) -> None:
    with running(wired, admission=Admission(queue_jobs=1)) as at_work:
        gate = Gate(held)
        waiting = at_work.submit(**long(2))
        gate.reached()
        for asked in (APPLE, long(2), long(3)):
            with pytest.raises(Busy, match="1 requests are waiting; at most 1 may"):
                at_work.submit(**asked)
        gate.go.set()
        assert isinstance(box_of(waiting).end(), Done)
        assert isinstance(box_of(at_work.submit(**APPLE)).end(), Done)


def test_lanes_that_are_made_at_start_are_waited_for_by_nobody(wired: Model, held: Held, model: Model) -> None:
    sizes = [(24, 24), (32, 24)]
    with running(wired, sizes=sizes, chunks=2) as at_work:
        assert at_work.metric("rows_capacity") == 4
        assert held.decoded == 2, "a size has one decoder, whatever its lanes"
        held.before_denoiser = raising(ValueError("made again"))
        for asked in (long(2), long(2, width=32, height=24), APPLE):
            job = at_work.submit(**asked)
            assert isinstance(box_of(job).end(), Done)
            np.testing.assert_array_equal(box_of(job).images[0], alone(model, **asked))
        assert box_of(at_work.submit(**long(3))).error()[1].endswith("3 chunks cannot be made")


def test_the_setting_reaches_the_device(model: Model) -> None:
    held = Held(model.backend)
    with serving(wrapped(model, held), chunks=2) as server:
        device = server.service.device
        assert device is not None and (24, 24, 2, 0) in device._lanes and (24, 24, 3, 0) not in device._lanes


def test_who_cannot_wait_for_a_lane_is_told_when_it_is_there_and_has_it_made(wired: Model, held: Held) -> None:
    with running(wired) as at_work:
        at_work.device._lanes._quickest = 600.0
        gate = Gate(held)
        soon = time.monotonic() + 300
        with pytest.raises(NotMade, match="the engine for 24x24 and a prompt of 2 chunks is being made") as refused:
            at_work.submit(**long(2), deadline=soon)
        assert 290 < refused.value.retry_after < 310 and at_work.leftovers == []
        gate.reached()
        waits = at_work.submit(**long(2))
        assert isinstance(box_of(at_work.submit(**APPLE, deadline=soon)).end(), Done), "others do not wait for it"
        gate.go.set()
        assert isinstance(box_of(waits).end(), Done)
        assert isinstance(box_of(at_work.submit(**long(2), deadline=soon)).end(), Done), "it is there"
    assert gate.made == [lane(2)]


def test_a_wanted_lane_that_cannot_be_made_is_tried_once_and_the_next_is_told_why(wired: Model, held: Held) -> None:
    with running(wired) as at_work:
        at_work.device._lanes._quickest = 600.0
        tries: list[None] = []
        held.before_denoiser = lambda: (tries.append(None), raising(NoEngine("run `make engines ..`"))())
        soon = time.monotonic() + 300
        with pytest.raises(NotMade):
            at_work.submit(**long(2), deadline=soon)
        eventually(lambda: at_work.device._batcher.lanes[LaneKey(24, 24, 2)].wanted, False)
        next_job = at_work.submit(**long(2), deadline=soon)
        assert box_of(next_job).error() == ("FAILED_PRECONDITION", "run `make engines ..`") and len(tries) == 2


def test_the_quickest_lane_so_far_tells_what_another_takes(wired: Model, held: Held) -> None:
    with running(wired) as at_work:
        lanes = at_work.device._lanes
        lanes._quickest = 600.0
        with pytest.raises(NotMade):
            at_work.submit(**long(2), deadline=time.monotonic() + 300)
        assert isinstance(box_of(at_work.submit(**long(2))).end(), Done)
        assert 0 < lanes._quickest < 600
