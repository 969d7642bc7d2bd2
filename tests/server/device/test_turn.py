"""Turns taken by hand: no thread, no loop, a backend that only writes down what it is called for."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from engines.errors import DeviceError, NoEngine, OutOfMemory
from server.device import turn
from server.device.ledger import Ledger, Ran
from server.events import Done, Failed, Image, Preview, Started, Step
from server.job import Job, Picture
from server.metrics import Metrics
from server.pace.median import Median
from server.pace.pace import Pace
from tests.support.jobs import box_of, idle_job, wish
from tests.support.stage import (
    EVALUATIONS,
    LARGE,
    LONG,
    SMALL,
    Stage,
    ended,
    kinds,
)


def test_one_picture_from_the_queue_to_its_file() -> None:
    stage = Stage()
    assert not stage.turn.due and stage.take() == []
    job = stage.submit()
    assert stage.turn.due
    assert stage.take() == [("encode", 0), ("sit", SMALL, 0), ("step", SMALL, [0], [])]
    assert box_of(job).events == [Started(0), Step(0, 1, EVALUATIONS)]
    assert stage.take() == [("step", SMALL, [0], []), ("leave", SMALL, 0), ("picture", 0)]
    assert kinds(job) == [Started, Step, Step, Image, Done]
    assert stage.turn.pulse == 1 + 2 + 1 and stage.empty
    assert job.timings.seats == [1, 1]


def test_who_waits_sits_and_after_a_new_prompt_the_others_step_first() -> None:
    stage = Stage(seats=4)
    for word in (1, 2, 1, 2):
        stage.submit(word)
    assert stage.take() == [("encode", 1), ("sit", SMALL, 0), ("step", SMALL, [0], [])]
    assert stage.take()[:3] == [("encode", 2), ("sit", SMALL, 1), ("step", SMALL, [0, 1], [])]
    # The first has left its seat; both prompts are remembered, so nobody waits for an encoder.
    assert stage.take()[:3] == [("sit", SMALL, 0), ("sit", SMALL, 2), ("step", SMALL, [0, 1, 2], [])]


def test_prompts_and_pictures_that_take_a_small_part_of_a_step_are_done_together() -> None:
    """Each by itself would begin with cold caches, and who has no seat yet would share no step."""
    stage = Stage(seats=4)
    stage.submit(0)
    stage.take()
    for word in (1, 2, 3):
        stage.submit(word)
    stage.turn.between = 1e9
    assert [call[0] for call in stage.take()] == [*["encode", "sit"] * 3, "step", "leave", "picture"]
    assert [call[0] for call in stage.take()] == ["step", *["leave"] * 3, *["picture"] * 3]
    assert stage.empty


def test_seats_are_given_on() -> None:
    stage = Stage(seats=1)
    stage.submit(images=2)
    assert [stage.take() for _ in range(4)] == [
        [("encode", 0), ("sit", SMALL, 0), ("step", SMALL, [0], [])],
        [("step", SMALL, [0], []), ("leave", SMALL, 0), ("picture", 0)],
        [("sit", SMALL, 0), ("step", SMALL, [0], [])],
        [("step", SMALL, [0], []), ("leave", SMALL, 0), ("picture", 0)],
    ]
    assert stage.empty


def cancel(job: Job) -> None:
    job.cancel()


def expire(job: Job) -> None:
    job.deadline = 0.0  # long ago
    job.wake()  # when it was let in it had none


GOES = pytest.mark.parametrize(
    ("go", "sentence"),
    [(cancel, ("CANCELLED", "the client went away")), (expire, ("DEADLINE_EXCEEDED", "the deadline passed"))],
)


@GOES
def test_who_has_gone_leaves_before_anybody_sits_or_steps(go: Callable[[Job], None], sentence: tuple[str, str]) -> None:
    stage = Stage(seats=1)
    seated, waits, follows = stage.submit(), stage.submit(), stage.submit()
    stage.take()
    go(seated)
    go(waits)
    assert stage.take() == [("leave", SMALL, 0), ("sit", SMALL, 0), ("step", SMALL, [0], [])]
    assert ended(seated) == ended(waits) == sentence
    assert kinds(waits) == [Failed] and kinds(follows) == [Started] and len(stage.jobs) == 1
    stage.take()
    assert kinds(follows)[:2] == [Started, Step] and follows.timings.seats == [1, 1]


@GOES
def test_who_goes_during_the_last_step_is_not_decoded(go: Callable[[Job], None], sentence: tuple[str, str]) -> None:
    stage = Stage()
    job = stage.submit()
    stage.take()
    stage.backend.before["step"] = lambda: go(job)
    assert stage.take() == [("step", SMALL, [0], []), ("leave", SMALL, 0)]
    assert ended(job) == sentence and stage.empty


def test_one_lane_steps_the_one_that_has_had_the_least_time() -> None:
    stage = Stage(lanes=(SMALL, LARGE))
    stage.submit()
    stage.submit(lane=LARGE)
    stage.turn.seat()
    stage.turn.seat()
    steps = []
    for spent in ((0.0, 1.0), (2.0, 1.0)):
        stage.batcher.lanes[SMALL].spent, stage.batcher.lanes[LARGE].spent = spent
        steps += [call for call in stage.take() if call[0] == "step"]
    assert steps == [("step", SMALL, [0], []), ("step", LARGE, [0], [])]


def test_a_preview_is_predicted_when_one_is_due_and_never_after_the_last_step() -> None:
    stage = Stage()
    plain, previewed = stage.submit(), stage.submit(preview_every=1)
    assert stage.take()[1:] == [("sit", SMALL, 0), ("step", SMALL, [0], [])]
    assert stage.take()[:2] == [("sit", SMALL, 1), ("step", SMALL, [0, 1], [1])]
    assert stage.take()[:1] == [("step", SMALL, [1], [])]
    assert Preview not in kinds(plain) and kinds(previewed) == [Started, Step, Preview, Step, Image, Done]


def test_pictures_that_are_not_ready_hold_up_no_step_and_two_are_under_way_at_most() -> None:
    stage = Stage(seats=4)
    stage.backend.ready = False
    jobs = [stage.submit() for _ in range(4)]
    stage.turn.seat()
    stage.turn.seat()
    calls = [call for _ in range(4) for call in stage.take()]
    assert [call for call in calls if call[0] == "picture"] == [("picture", 0), ("picture", 1)]
    assert not stage.turn.due and stage.decoding.at_work and len(stage.decoding.pictures) == 4
    stage.backend.ready = True
    assert stage.take() == [] and [Image in kinds(job) for job in jobs] == [True, True, False, False]
    assert stage.take() == [("picture", 2)] and stage.take() == [("picture", 3)] and stage.empty


FULL = ("RESOURCE_EXHAUSTED", "no room")


@pytest.mark.parametrize(
    ("where", "error", "sentence"),
    [
        ("encode", ValueError("inner words"), ("INTERNAL", "image 0 cannot be begun")),
        ("sit", ValueError("inner words"), ("INTERNAL", "image 0 cannot be begun")),
        ("sit", OutOfMemory("no room"), FULL),
        ("picture", OutOfMemory("no room"), FULL),
    ],
)
def test_what_goes_wrong_with_one_picture_ends_its_job_alone(
    where: str, error: Exception, sentence: tuple[str, str]
) -> None:
    stage = Stage()
    broken, other = stage.submit(1, images=2), stage.submit(2)
    stage.backend.breaks(where, error)
    while stage.turn.due:
        stage.take()
    assert ended(broken) == sentence and kinds(broken).count(Image) == 0
    assert kinds(other)[-2:] == [Image, Done] and stage.empty


def test_a_picture_that_cannot_be_decoded_fails_and_its_neighbours_of_the_same_job_do_not() -> None:
    stage = Stage(seats=1)
    job = stage.submit(images=2)
    stage.take()
    stage.backend.breaks("picture", ValueError("inner words"))
    assert stage.take() == [("step", SMALL, [0], []), ("leave", SMALL, 0)]
    assert stage.take() == [("sit", SMALL, 0), ("step", SMALL, [0], [])]
    assert stage.take() == [("step", SMALL, [0], []), ("leave", SMALL, 0), ("picture", 0)]
    assert ended(job) == ("INTERNAL", "image 0 cannot be decoded")
    assert kinds(job)[-2:] == [Image, Failed] and stage.empty


@pytest.mark.parametrize("where", ["encode", "sit", "step", "picture"])
def test_a_device_that_fails_is_the_callers_to_deal_with(where: str) -> None:
    stage = Stage()
    job = stage.submit()
    stage.backend.breaks(where, DeviceError("lost"))
    with pytest.raises(DeviceError, match="lost"):
        for _ in range(EVALUATIONS):
            stage.take()
    assert box_of(job).ends == 0 and len(stage.jobs) == 1


def test_a_lane_that_somebody_waits_for_is_made_and_then_sat_in() -> None:
    stage = Stage()
    job = stage.submit(lane=LONG)
    assert stage.turn.due
    assert stage.take() == [("make", LONG), ("encode", 0), ("sit", LONG, 0), ("step", LONG, [0], [])]
    assert stage.take() == [("step", LONG, [0], []), ("leave", LONG, 0), ("picture", 0)]
    assert kinds(job)[-1] is Done and stage.empty


def test_a_lane_that_cannot_be_made_is_tried_again_for_the_next_who_asks() -> None:
    stage = Stage()
    waiting = [stage.submit(lane=LONG), stage.submit(lane=LONG)]
    stage.backend.breaks("make", NoEngine("run `make engines ..`"))
    assert stage.take() == []
    assert [ended(job) for job in waiting] == [("FAILED_PRECONDITION", "run `make engines ..`")] * 2 and stage.empty
    stage.submit(lane=LONG)
    assert stage.take()[0] == ("make", LONG)


def test_a_device_that_fails_while_a_lane_is_made() -> None:
    stage = Stage()
    stage.submit(lane=LONG)
    stage.backend.breaks("make", DeviceError("lost"))
    with pytest.raises(DeviceError, match="lost"):
        stage.take()


def test_as_many_pictures_as_there_are_seats_wait_for_the_decoder_and_nobody_sits_down_beyond_them() -> None:
    """Pictures of few steps finish faster than they are decoded."""
    stage = Stage(seats=2)
    stage.backend.ready = False
    jobs = [stage.submit(images=2) for _ in range(5)]
    calls = [call for _ in range(20) if stage.turn.due for call in stage.take()]
    assert [call[0] for call in calls].count("step") == 3 * EVALUATIONS
    assert [call for call in calls if call[0] == "picture"] == [("picture", 0), ("picture", 1)], "two at once"
    assert stage.metric("decode_backlog") == 3 and stage.metric("queue_depth") == 5 and not stage.turn.due
    stage.backend.ready = True
    while stage.turn.due or stage.decoding.at_work:
        stage.take()
    assert all(kinds(job)[-1] is Done for job in jobs) and stage.empty and stage.metric("decode_backlog") == 0


def test_the_wait_for_the_decoder_has_its_place_in_the_timings() -> None:
    stage = Stage(seats=2)
    jobs = [stage.submit(), stage.submit()]
    while stage.turn.due:
        stage.take()
    for job in jobs:
        timings = job.timings
        assert job.arrived < timings.seated <= timings.encoded <= timings.evaluated <= timings.decoding
        assert timings.decoding <= timings.decoded <= timings.written
        assert sum(timings.parts(timings.written).values()) == pytest.approx(1e3 * (timings.written - job.arrived))


def test_who_goes_while_a_picture_waits_for_the_decoder_is_not_decoded() -> None:
    stage = Stage(seats=3)
    stage.backend.ready = False
    jobs = [stage.submit() for _ in range(3)]
    for _ in range(3):
        stage.take()
    assert stage.metric("decode_backlog") == 1
    cancel(jobs[2])
    stage.take()
    assert (
        stage.metric("decode_backlog") == 0 and ended(jobs[2])[0] == "CANCELLED" and len(stage.decoding.pictures) == 2
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of the turns: it stands still, unless a test sets `now`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(turn, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def paced(seats: int) -> Stage:
    """A picture's two evaluations take 0.4 s by itself, whatever the steps take; its prompt is remembered."""
    stage = Stage(seats)
    stage.submit()
    while stage.turn.due:
        stage.take()
    stage._pace._rows[SMALL] = Median([0.1])
    stage._pace.stepped = lambda *_: None  # type: ignore[method-assign]
    return stage


def test_who_cannot_meet_a_deadline_any_more_leaves_the_queue_early(clock: SimpleNamespace) -> None:
    stage = paced(seats=1)
    stage.submit()
    late, just = stage.submit(deadline=clock.now + 0.75), stage.submit(deadline=clock.now + 1.25)
    stage.take()
    sentence = "the deadline, in 0.75 s, cannot be met any more: 0.80 s are left to do"
    assert ended(late) == ("DEADLINE_EXCEEDED", sentence) and kinds(late) == [Failed]
    assert stage.metric("given_up_total", where="queue") == 1
    while stage.turn.due:
        stage.take()
    assert kinds(just)[-1] is Done and stage.empty


def test_who_cannot_meet_a_deadline_any_more_leaves_its_seat_early(clock: SimpleNamespace) -> None:
    stage = paced(seats=2)
    late, other = stage.submit(deadline=clock.now + 0.85), stage.submit()
    assert stage.take() == [("sit", SMALL, 0), ("sit", SMALL, 1), ("step", SMALL, [0, 1], [])]
    clock.now += 0.7
    assert stage.take() == [("leave", SMALL, 0), ("step", SMALL, [1], []), ("leave", SMALL, 1), ("picture", 1)]
    sentence = "the deadline, in 0.15 s, cannot be met any more: 0.40 s are left to do"
    assert ended(late) == ("DEADLINE_EXCEEDED", sentence) and kinds(other)[-1] is Done
    assert stage.metric("given_up_total", where="seat") == 1


def test_the_last_one_is_tried_to_its_end(clock: SimpleNamespace) -> None:
    """The pace says that it takes 0.4 s; only a try can show that this is wrong."""
    stage = paced(seats=2)
    job = stage.submit(deadline=clock.now + 0.01)
    stage.take()
    stage.take()
    assert kinds(job)[-1] is Done


def test_who_would_make_a_seated_deadline_be_missed_waits(clock: SimpleNamespace) -> None:
    stage = paced(seats=2)
    tight = stage.submit(deadline=clock.now + 0.6)  # it takes 0.8 s beside another one
    follows, last = stage.submit(), stage.submit()
    assert stage.take() == [("sit", SMALL, 0), ("step", SMALL, [0], [])]
    clock.now += 0.3
    assert stage.take() == [("step", SMALL, [0], []), ("leave", SMALL, 0), ("picture", 0)]
    assert kinds(tight)[-1] is Done and kinds(follows) == kinds(last) == []
    assert stage.take() == [("sit", SMALL, 0), ("sit", SMALL, 1), ("step", SMALL, [0, 1], [])]


def test_what_was_stepped_for_nothing_can_be_told_from_what_was_delivered() -> None:
    stage = Stage(seats=2)
    gone, stays = stage.submit(), stage.submit()
    stage.take()
    cancel(gone)
    while stage.turn.due:
        stage.take()
    assert kinds(stays)[-1] is Done
    assert (stage.metric("seat_steps_total"), stage.metric("seat_steps_delivered_total")) == (3, 2)


def test_forecasts_learn_from_how_long_jobs_took_and_not_from_who_left() -> None:
    stage = Stage(seats=2)
    longer, gone = stage.submit(), stage.submit()
    longer.expected = gone.expected = 1e-9
    cancel(gone)
    while stage.turn.due:
        stage.take()
    assert stage.metric("forecast_margin") == 2 and len(stage.jobs.margin._ratios) == 1


def test_a_deadline_that_passes_between_two_steps_is_noticed_though_nobody_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage()
    job = stage.submit(deadline=time.monotonic() + 60)
    assert stage.take()[-1] == ("step", SMALL, [0], []) and stage.turn.calm
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert not stage.turn.calm and stage.take() == [("leave", SMALL, 0)]
    assert ended(job) == ("DEADLINE_EXCEEDED", "the deadline passed") and stage.empty


@pytest.fixture
def entered() -> tuple[Ledger, Callable[[], float | None], Pace]:
    """A ledger, how many steps are entered in the metrics, and the pace."""
    metrics, pace = Metrics("m"), Pace({SMALL: 1.0, LARGE: 1.0})
    count = functools.partial(metrics.registry.get_sample_value, "latentd_steps_total", {"model": "m"})
    return Ledger(metrics, pace), count, pace


def test_steps_are_entered_a_few_at_once(entered: tuple[Ledger, Callable[[], float | None], Pace]) -> None:
    ledger, count, _ = entered
    job = idle_job(wish(SMALL, 12))
    told, picture = [], Picture(job, 0)
    for step in range(12):
        ledger.add(Ran(SMALL, 4, [(picture, step + 1)], took=0.001, start=0.001 * step, end=0.001 * step + 0.001))
        told.append(count())
    assert told == [1] * 8 + [9] * 4
    assert box_of(job).events == [Step(0, 1, 12), Step(0, 9, 12)], "the last of several is told"
    ledger.enter()
    assert count() == 12 and box_of(job).events[-1] == Step(0, 12, 12)


def test_a_picture_of_two_evaluations_a_step_is_told_each_step_once(
    entered: tuple[Ledger, Callable[[], float | None], Pace],
) -> None:
    ledger, _, _ = entered
    asked = wish(SMALL, evaluations=5)
    job = idle_job(replace(asked, table=replace(asked.table, steps_done=np.array([0, 1, 1, 2, 3]))))
    for reached in range(1, 6):
        start = 0.1 * reached
        ledger.add(Ran(SMALL, 2, [(Picture(job, 0), reached)], took=0.06, start=start, end=start + 0.06))
    assert [event.step for event in box_of(job).events if isinstance(event, Step)] == [1, 2, 3]


def test_a_step_of_other_rows_is_entered_at_once_and_none_is_long_open(
    entered: tuple[Ledger, Callable[[], float | None], Pace],
) -> None:
    ledger, count, pace = entered
    told = []
    for step, rows in enumerate((4, 4, 2, 4, 4)):
        ledger.add(Ran(SMALL, rows, [], took=0.01, start=0.01 * step, end=0.01 * step + 0.01))
        told.append(count())
    assert told == [1, 1, 3, 4, 4]
    ledger.add(Ran(LARGE, 4, [], took=0.01, start=0.1, end=0.11))
    assert count() == 6, "another lane's"
    for start, end in ((0.2, 0.21), (0.21, 0.22), (0.22, 2.2)):
        ledger.add(Ran(SMALL, 4, [], took=end - start, start=start, end=end))
    assert count() == 9 and pace.row(SMALL) > 0


def test_who_came_between_two_steps_finds_all_of_them_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.stage.EVALUATIONS", 9)
    stage = Stage()
    stage.submit()
    for _ in range(3):
        stage.take()
    assert stage.turn.calm and stage.metric("steps_total") == 1
    stage.submit(1)
    told: list[float | None] = []
    stage.backend.before["sit"] = lambda: told.append(stage.metric("steps_total"))
    stage.take()
    assert told == [3]


def test_a_deadline_of_a_picture_that_is_being_written_is_looked_for() -> None:
    """It neither waits nor sits, so no outlook knows it."""
    stage = Stage()
    stage.submit()
    stage.take()
    written = stage.submit(deadline=time.monotonic() + 60)
    stage.batcher.drop([written])
    stage.turn.drop()
    assert stage.jobs.quiet_until == written.deadline
