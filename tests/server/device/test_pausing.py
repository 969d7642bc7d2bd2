"""Pictures that give up their seats for others, through the whole device: nothing is lost, and no bit changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from engines.errors import DeviceError
from engines.model import Model
from pipeline.conditions.interval import Interval
from pipeline.conditions.original import Original, encoded
from server.batching import share
from server.device import turn
from server.events import Done, Preview, Started, Step
from server.job import Job
from server.request import ImageRequest
from server.wish import Wish
from tests.support.held import Held, eventually, raising
from tests.support.jobs import Running, alone, box_of, running
from tests.support.uploads import colours

FLOOD = {"prompt": "a red apple", "steps": 12, "guidance": 3.0, "sampler": "unipc", "seed": 5, "images": 4}
OTHER = {"prompt": "a cat", "steps": 3, "guidance": 3.0, "sampler": "dpmpp_2m_sde", "seed": 9}


@pytest.fixture(autouse=True)
def nobody_rides(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a held step takes says nothing about its rows."""
    monkeypatch.setattr(share, "_FREE", -1.0)


def beside(at_work: Running, held: Held, **fields) -> tuple[Job, Job]:
    """A flood that sits in both seats, and another caller's job for whose sake one of its pictures is paused."""
    flood = at_work.submit(caller="10.0.0.1", **FLOOD, **fields)
    for _ in range(4):
        held.begun()
        held.let()
    held.begun()
    other = at_work.submit(caller="10.0.0.2", **OTHER)
    held.let()
    held.begun()
    assert at_work.metric("pictures_paused") == 1 and at_work.metric("pauses_total") == 1
    return flood, other


def test_paused_pictures_have_the_pixels_of_those_made_alone(wired: Model, held: Held, model: Model) -> None:
    with running(wired, ready=held.hold) as at_work:
        flood, other = beside(at_work, held, preview_every=4)
        held.release()
        assert isinstance(box_of(flood).end(), Done) and isinstance(box_of(other).end(), Done)
        assert at_work.metric("pictures_paused") == 0 and at_work.leftovers == []
        assert at_work.metric("seat_steps_total") == 4 * 12 + 3, "nothing is computed twice"
    for index in range(4):
        wanted = alone(model, **{**FLOOD, "seed": 5 + index})
        np.testing.assert_array_equal(box_of(flood).images[index], wanted)
    np.testing.assert_array_equal(box_of(other).images[0], alone(model, **OTHER))
    events = box_of(flood).events
    assert sorted(event.index for event in events if isinstance(event, Started)) == [0, 1, 2, 3], "once each"
    for index in range(4):
        told = [e.step for e in events if isinstance(e, Step) and e.index == index]
        assert told == sorted(set(told)) and told[-1] == 12, "no step twice, none before another, and the last"
        previewed = [e.step for e in events if isinstance(e, Preview) and e.index == index]
        assert previewed == sorted(previewed) and set(previewed) <= {4, 8}
    parts = flood.timings.parts(time.monotonic())
    assert min(parts.values()) >= 0, "a pause is a part of denoise"


def test_what_a_paused_picture_begins_with_stays(
    wired: Model, held: Held, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a picture, a mask, and an interval that ends after the pause, so that rows change while nobody sits."""
    mask = np.zeros((24, 24), bool)
    mask[5:15, 8:20] = True
    original = Original(np.asarray(colours(24, 24)), mask)
    start = encoded(original, model.spec, model.backend.moments)
    read = Wish.of.__func__  # type: ignore[attr-defined]

    def with_start(cls: type[Wish], request: ImageRequest, *others) -> Wish:
        wish = read(cls, request, *others)
        return wish if request.init_image is None else replace(wish, start=start)

    monkeypatch.setattr(Wish, "of", classmethod(with_start))
    interval = {"guidance_start": 0.3, "guidance_end": 0.7}
    with running(wired, ready=held.hold) as at_work:
        flood, other = beside(at_work, held, init_image=b"read", mask=b"read", strength=0.9, **interval)
        rows = [flood.wish.rows(evaluation) for evaluation in range(flood.wish.table.evaluations)]
        assert rows == [1] * 3 + [2] * 4 + [1] * 3, "it was paused after five, where it is guided"
        held.release()
        assert isinstance(box_of(flood).end(), Done) and isinstance(box_of(other).end(), Done)
        assert at_work.metric("seat_steps_total") == 4 * len(rows) + 3 and at_work.metric("rows_live") == 0
    told = {**FLOOD, "original": original, "strength": 0.9, "interval": Interval(0.3, 0.7)}
    for index in range(4):
        np.testing.assert_array_equal(box_of(flood).images[index], alone(model, **{**told, "seed": 5 + index}))


def test_the_other_one_is_done_long_before_the_flood(wired: Model, held: Held) -> None:
    with running(wired, ready=held.hold) as at_work:
        flood, other = beside(at_work, held)
        ends: list[str] = []
        for name, job in (("flood", flood), ("other", other)):
            post = box_of(job).post

            def noted(event, name=name, post=post) -> None:
                if isinstance(event, Done):
                    ends.append(name)
                post(event)

            box_of(job).post = noted  # type: ignore[method-assign]
        before = len(held.runs)
        for _ in range(3):
            held.let()
            held.begun()
        assert all(len(rows) == 4 for rows in held.runs[before - 1 :][:3]), "two rows of each"
        held.release()
        assert isinstance(box_of(flood).end(), Done) and ends == ["other", "flood"]


def leaves_by_cancel(at_work: Running, held: Held, job: Job) -> None:
    job.cancel()


def leaves_by_deadline(at_work: Running, held: Held, job: Job) -> None:
    job.deadline = time.monotonic() - 1
    job.wake()


@pytest.mark.parametrize(
    ("leave", "code"),
    [(leaves_by_cancel, "CANCELLED"), (leaves_by_deadline, "DEADLINE_EXCEEDED")],
)
def test_who_is_paused_leaves_at_once(
    leave: Callable[[Running, Held, Job], None], code: str, wired: Model, held: Held
) -> None:
    with running(wired, ready=held.hold) as at_work:
        flood, other = beside(at_work, held)
        leave(at_work, held, flood)
        held.let()
        assert box_of(flood).error()[0] == code
        held.release()
        assert isinstance(box_of(other).end(), Done)
        eventually(lambda: at_work.leftovers, [])
        assert at_work.metric("pictures_paused") == 0


def test_a_device_that_fails_tells_those_who_are_paused(wired: Model, held: Held) -> None:
    with running(wired, ready=held.hold) as at_work:
        flood, other = beside(at_work, held)
        held.before_run = raising(DeviceError("the card fell off the bus"))
        held.release()
        assert {box_of(job).error()[0] for job in (flood, other)} == {"UNAVAILABLE"}
        eventually(lambda: at_work.leftovers, [])


def test_whoever_is_paused_is_dismissed_with_the_others(wired: Model, held: Held) -> None:
    with running(wired, ready=held.hold) as at_work:
        flood, other = beside(at_work, held)
        at_work.device.dismiss("the server stops")
        assert {box_of(job).error() for job in (flood, other)} == {("UNAVAILABLE", "the server stops")}
        held.release()


def test_a_pause_that_fails_ends_the_paused_job_alone(
    wired: Model, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(wired, ready=held.hold) as at_work:
        monkeypatch.setattr(turn.Seating, "pause", lambda *_: raising(RuntimeError("no"))())
        flood = at_work.submit(caller="10.0.0.1", **FLOOD)
        for _ in range(4):
            held.begun()
            held.let()
        held.begun()
        other = at_work.submit(caller="10.0.0.2", **OTHER)
        held.release()
        assert box_of(flood).error()[0] == "INTERNAL" and isinstance(box_of(other).end(), Done)
        eventually(lambda: at_work.leftovers, [])


def test_a_higher_priority_steps_alone_from_the_next_step_on(wired: Model, held: Held) -> None:
    with running(wired, ready=held.hold) as at_work:
        at_work.device._jobs._steps = 10**9  # of a usual request: in four of them who waits rises by a level
        flood = at_work.submit(caller="10.0.0.1", **FLOOD)
        for _ in range(4):
            held.begun()
            held.let()
        held.begun()
        urgent = at_work.submit(caller="10.0.0.1", **OTHER, priority=1)
        before = len(held.runs)
        for _ in range(3):
            held.let()
            held.begun()
        assert [len(rows) for rows in held.runs[before : before + 3]] == [2, 2, 2]
        held.release()
        assert isinstance(box_of(urgent).end(), Done) and isinstance(box_of(flood).end(), Done)
