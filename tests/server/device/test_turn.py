"""Turns taken by hand: no thread, no loop, a backend that only writes down what it is called for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.backend import Pending, Ready
from engines.errors import DeviceError, NoEngine, OutOfMemory
from engines.preview import ColourMap
from engines.preview import Preview as PreviewMap
from engines.seat import Sitting
from pipeline.arrays import F32, Pixels
from pipeline.conditions.text import Encoded
from pipeline.loras.lora import Lora
from server.batching.batcher import Batcher
from server.batching.pace import Median, Pace
from server.caller import LOCAL
from server.device import turn
from server.device.decoding import Decoding
from server.device.delivery import Delivery
from server.device.jobs import Jobs
from server.device.lanes import Lanes
from server.device.turn import Turn
from server.events import Done, Event, Failed, Image, Preview, Started, Step
from server.job import Job, Picture
from server.metrics import Metrics
from server.wish import LaneKey
from tests.support.jobs import box_of, idle_job, wish

SMALL, LARGE, LONG = LaneKey(8, 8, 1), LaneKey(16, 8, 1), LaneKey(8, 8, 2)
EVALUATIONS = 2  # of every picture
Call = tuple[Any, ...]


class Writing:
    """Stands for a backend and writes down its calls; a `before` may raise, or do what others do meanwhile."""

    makes_beside = False

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.before: dict[str, Callable[[], object]] = {}
        self.ready = True  # is a picture, as soon as it is begun?

    def breaks(self, name: str, error: Exception) -> None:
        """The next call of this name fails, and the ones after it do not."""

        def fail() -> None:
            del self.before[name]
            raise error

        self.before[name] = fail

    def note(self, name: str, *details: Any) -> None:
        self.before.get(name, lambda: None)()
        self.calls.append((name, *details))

    def encode_text(self, ids: np.ndarray, skip: int, lora: Lora | None) -> Encoded:
        self.note("encode", int(ids[0]))
        return Encoded(np.zeros((len(ids), 3), np.float32))

    def row_seconds(self, width: int, height: int, chunks: int, rank: int) -> float:
        return 0.1

    def stepper(self, width: int, height: int, seats: int, chunks: int, steps: int, rank: int) -> Seats:
        lane = LaneKey(width, height, chunks, rank)
        self.note("make", lane)
        return Seats(self, lane)

    def picture(self, latents: Pending[F32]) -> Pending[Pixels | None]:
        self.note("picture", int(latents.get()[0, 0, 0]))
        pixels = Ready(np.zeros((8, 8, 3), np.uint8))
        return pixels if self.ready else SimpleNamespace(ready=lambda: self.ready, get=pixels.get)  # type: ignore[return-value]


class Seats:
    """The stepper of a lane; latents are full of the seat's number."""

    def __init__(self, backend: Writing, lane: LaneKey) -> None:
        self._backend, self._lane = backend, lane
        self._reached: dict[int, int] = {}

    def sit(self, seat: int, sitting: Sitting) -> None:
        resumed = () if sitting.state is None else (("from", sitting.start, int(sitting.state[0, 0, 0, 0])),)
        self._backend.note("sit", self._lane, seat, *resumed)
        self._reached[seat] = sitting.start

    def leave(self, seat: int) -> None:
        self._backend.note("leave", self._lane, seat)

    def pause(self, seat: int) -> Pending[F32]:
        self._backend.note("pause", self._lane, seat)
        return Ready(np.full((5, 1, 1, 1), seat, np.float32))

    def step(self, seats: Sequence[int], predict: Collection[int] = ()) -> None:
        self._backend.note("step", self._lane, list(seats), list(predict))
        for seat in seats:
            self._reached[seat] += 1

    def reached(self, seat: int) -> int:
        return self._reached[seat]

    def finished(self, seat: int) -> bool:
        return self._reached[seat] == EVALUATIONS

    def pending_latents(self, seat: int) -> Pending[F32]:
        return Ready(np.full((1, 1, 1), seat, np.float32))

    pending_prediction = pending_latents


class Fitted(PreviewMap):
    """A map that is known: of one latent channel to three colours."""

    def __init__(self) -> None:
        self._map = ColourMap(np.zeros((3, 10), np.float32), 1.0)


class Here(Delivery):
    """Writes files and previews here and now."""

    def picture(self, picture: Picture, pixels: Pixels) -> None:
        self._write(picture, pixels)

    def preview(self, picture: Picture, step: int, prediction: Pending[F32]) -> None:
        picture.previews_under_way += 1
        self._preview(picture, step, prediction)


class Flat(Pace):
    """Knows that all may step together, however long these steps really take."""

    def step(self, lane: LaneKey, rows: int) -> float:
        return 1.0


class Stage:
    """All that a turn needs."""

    def __init__(self, seats: int = 2, lanes: Sequence[LaneKey] = (SMALL,), loras: Any = None) -> None:
        self.backend = Writing()
        spec = SimpleNamespace(
            latent_shape=lambda width, height: (1, height, width),
            unet=SimpleNamespace(size_width=0, pooled_width=0, context_width=3),
            text=SimpleNamespace(tokens=4),
        )
        model: Any = SimpleNamespace(spec=spec, backend=self.backend, loras=loras)
        self._metrics = metrics = Metrics("m")
        self.batcher = Batcher(lanes, seats)
        self._lanes = Lanes(model, seats, EVALUATIONS, metrics, lambda: None)
        self._pace = Flat({lane: self._lanes.warm(lane) for lane in lanes})
        self.jobs = Jobs(self.batcher, self._pace, metrics, EVALUATIONS)
        delivery = Here(1, Fitted(), self._pace, metrics, self.jobs.forget)
        self.decoding = Decoding(model.backend, delivery, self._pace, metrics)
        self.turn = Turn(
            model,
            jobs=self.jobs,
            lanes=self._lanes,
            pace=self._pace,
            decoding=self.decoding,
            delivery=delivery,
            metrics=metrics,
        )
        self.backend.calls.clear()

    def submit(
        self,
        word: int = 0,
        lane: LaneKey = SMALL,
        images: int = 1,
        preview_every: int = 0,
        deadline: float | None = None,
        caller: str = LOCAL,
    ) -> Job:
        """A job as Device lets it in, its prompts made of one token; tests start with none that is remembered."""
        plain = wish(lane, EVALUATIONS, images=images)
        prompt = dataclasses.replace(plain.prompt, ids=np.full_like(plain.prompt.ids, word))
        job = idle_job(dataclasses.replace(plain, prompt=prompt, negative=prompt, preview_every=preview_every))
        job.deadline, job.caller = deadline, caller
        if self.batcher.open(lane):
            self._pace.open(lane)
        self.jobs.add(job)
        return job

    def metric(self, name: str, **labels: str) -> float | None:
        return self._metrics.registry.get_sample_value(f"latentd_{name}", {"model": "m", **labels})

    def take(self) -> list[Call]:
        """The calls of one turn."""
        self.turn.take()
        calls, self.backend.calls[:] = self.backend.calls[:], []
        return calls

    @property
    def empty(self) -> bool:
        """Has everybody gone, and is nothing left to do?"""
        sits = any(lane.live for lane in self.batcher.lanes.values())
        return not (len(self.jobs) or self.batcher.waiting or sits or self.decoding.pictures or self.turn.due)


def ended(job: Job) -> tuple[str, str]:
    """Code and sentence of a job's failure."""
    (failed,) = (event for event in box_of(job).events if isinstance(event, Failed))
    return failed.error.code, str(failed.error)


def kinds(job: Job) -> list[type[Event]]:
    return [type(event) for event in box_of(job).events]


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
    assert kinds(waits) == [Failed] and kinds(follows) == [Started, Step] and len(stage.jobs) == 1


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
