"""The device thread without a door: cancellation, failures, and that every job ends exactly once."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from engines.errors import DeviceError, OutOfMemory
from engines.model import Model
from server.batching.admission import Admission
from server.device import pictures
from server.errors import Busy, NotServing
from server.events import Done, Failed, Image, Started, Step
from tests.support.held import Held, eventually, raising
from tests.support.jobs import alone, box_of, running

APPLE = {"prompt": "a red apple", "seed": 1, "steps": 4}
CAT = {"prompt": "a blue cat", "seed": 2, "steps": 6, "guidance": 1.0}


def test_jobs_side_by_side_equal_those_made_alone(wired: Model, held: Held, model: Model) -> None:
    with running(wired, ready=held.hold) as at_work:
        jobs = [at_work.submit(**APPLE), at_work.submit(**CAT)]
        held.release()
        assert all(isinstance(box_of(job).end(), Done) for job in jobs)
    for job, asked in zip(jobs, (APPLE, CAT), strict=True):  # when the device rests: it would share its engines
        np.testing.assert_array_equal(box_of(job).images[0], alone(model, **asked))
    assert [0, 1, 2] in held.runs, "they did not share a step"


def test_a_cancelled_job_computes_no_step_after_the_one_under_way(wired: Model, held: Held) -> None:
    with running(wired, ready=held.hold) as at_work:
        held.runs.clear()
        job = at_work.submit(prompt="a cat", steps=50)
        held.begun()
        held.let()
        held.begun()
        job.cancel()
        held.release()
        assert box_of(job).error() == ("CANCELLED", "the client went away")
        assert len(held.runs) == 2 and held.decoded == 1, "1 is the warm one"
        assert at_work.leftovers == []
        assert at_work.metric("cancelled_total", where="seat") == 1
        assert at_work.metric("rows_live") == 0 and at_work.metric("queue_depth") == 0


def test_an_expired_job_computes_no_step_after_the_one_under_way(wired: Model, held: Held) -> None:
    with running(wired, ready=held.hold) as at_work:
        held.runs.clear()
        job = at_work.submit(prompt="a cat", steps=50)
        held.begun()
        job.deadline = 0.0  # long ago
        job.wake()  # when it was let in it had none
        held.release()
        assert box_of(job).error() == ("DEADLINE_EXCEEDED", "the deadline passed")
        assert len(held.runs) == 1 and at_work.leftovers == []


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_who_waits_and_goes_never_computes(how: str, wired: Model, held: Held) -> None:
    with running(wired, seats=1, ready=held.hold) as at_work:
        held.runs.clear()
        first = at_work.submit(**APPLE)
        held.begun()
        waiting = at_work.submit(prompt="a cat in the photo", images=3)
        assert at_work.metric("queue_depth") == 3
        if how == "cancelled":
            waiting.cancel()
        else:
            waiting.deadline = 0.0
        held.release()
        assert box_of(waiting).error()[0] == {"cancelled": "CANCELLED", "expired": "DEADLINE_EXCEEDED"}[how]
        assert isinstance(box_of(first).end(), Done)
        assert box_of(waiting).started == [] and len(box_of(waiting).events) == 1
        assert len(held.runs) == 4 and len(held.encoded) == 2, "both are the first one's"
        assert at_work.metric("cancelled_total", where="queue") == 1
        assert at_work.leftovers == []


def test_a_seat_that_was_left_is_given_on_and_its_neighbour_notices_nothing(
    wired: Model, held: Held, model: Model
) -> None:
    with running(wired, ready=held.hold) as at_work:
        gone, stays, follows = at_work.submit(**APPLE), at_work.submit(**CAT), at_work.submit(**APPLE)
        for _ in range(2):
            held.begun()
            held.let()
        held.begun()
        gone.cancel()
        held.release()
        box_of(gone).error()
        assert all(isinstance(box_of(job).end(), Done) for job in (stays, follows))
    for job, asked in ((stays, CAT), (follows, APPLE)):
        np.testing.assert_array_equal(box_of(job).images[0], alone(model, **asked))


def test_a_job_cancelled_between_its_pictures_ends_once(wired: Model, held: Held) -> None:
    at_decode, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        at_decode.set()
        assert go_on.wait(30)

    with running(wired, seats=1) as at_work:
        held.runs.clear()
        held.before_decode = wait
        job = at_work.submit(images=3, **APPLE)
        assert at_decode.wait(30)
        job.cancel()
        go_on.set()
        assert box_of(job).error()[0] == "CANCELLED"
    assert len(held.runs) == 4 and box_of(job).started == [0], "the others were not begun"
    assert box_of(job).ends == 1 and at_work.leftovers == []


def test_a_picture_is_not_decoded_for_a_client_who_left_during_its_last_step(wired: Model, held: Held) -> None:
    with running(wired, ready=held.hold) as at_work:
        before = held.decoded
        job = at_work.submit(prompt="a cat", steps=1)
        held.begun()
        job.cancel()
        held.release()
        assert box_of(job).error()[0] == "CANCELLED"
        assert held.decoded == before and at_work.leftovers == []


def spoil(row: int):
    def after(denoiser, rows) -> None:
        if row in rows:
            denoiser.outputs[row] = np.nan

    return after


def test_nan_in_a_seat_fails_its_job_alone(wired: Model, held: Held, model: Model) -> None:
    with running(wired, ready=held.hold) as at_work:
        spoilt, neighbour = at_work.submit(**APPLE), at_work.submit(**CAT)
        held.after_run = spoil(0)
        held.release()
        before = held.decoded
        assert box_of(spoilt).error() == ("INTERNAL", "image 0 came out as not a number")
        assert isinstance(box_of(neighbour).end(), Done)
        np.testing.assert_array_equal(box_of(neighbour).images[0], alone(model, **CAT))
        assert at_work.metric("nan_images_total") == 1 and held.decoded == before + 1

        held.after_run = lambda denoiser, rows: None
        heir = at_work.submit(**APPLE)  # in the seat of the one that came out as NaN
        assert isinstance(box_of(heir).end(), Done)
        np.testing.assert_array_equal(box_of(heir).images[0], alone(model, **APPLE))


def test_nan_in_one_picture_delivers_the_others_and_names_it(wired: Model, held: Held, model: Model) -> None:
    with running(wired, seats=3, ready=held.hold) as at_work:
        job = at_work.submit(images=3, **APPLE)
        held.after_run = spoil(2)  # the second seat's
        held.release()
        assert box_of(job).error() == ("INTERNAL", "image 1 came out as not a number")
        assert sorted(box_of(job).images) == [0, 2]
        for index, image in box_of(job).images.items():
            np.testing.assert_array_equal(image, alone(model, **{**APPLE, "seed": 1 + index}))
        assert at_work.leftovers == []


def test_a_decoder_that_makes_nan_is_noticed(wired: Model, held: Held) -> None:
    with running(wired) as at_work:
        held.after_decode = lambda picture: picture * np.float32(np.nan)
        assert box_of(at_work.submit(**APPLE)).error() == ("INTERNAL", "image 0 came out as not a number")


def test_an_error_in_decoding_fails_its_job_alone(wired: Model, held: Held, model: Model) -> None:
    with running(wired, seats=1) as at_work:
        held.before_decode = raising(ValueError("some inner words"))
        assert box_of(at_work.submit(**APPLE)).error() == ("INTERNAL", "image 0 cannot be decoded")
        held.before_decode = lambda: None
        after = at_work.submit(**CAT)
        assert isinstance(box_of(after).end(), Done) and at_work.deaths == 0
        np.testing.assert_array_equal(box_of(after).images[0], alone(model, **CAT))


def test_an_error_in_encoding_fails_its_job_alone(wired: Model, held: Held, model: Model) -> None:
    with running(wired, seats=2, ready=held.hold) as at_work:
        neighbour = at_work.submit(**CAT)
        held.begun()
        held.before_encode = raising(ValueError("some inner words"))
        broken = at_work.submit(images=4, **APPLE)
        held.release()
        assert box_of(broken).error() == ("INTERNAL", "image 0 cannot be begun")
        assert isinstance(box_of(neighbour).end(), Done)
        held.before_encode = lambda: None
        again = at_work.submit(**APPLE)
        assert isinstance(box_of(again).end(), Done) and at_work.deaths == 0
        np.testing.assert_array_equal(box_of(again).images[0], alone(model, **APPLE))
        assert at_work.leftovers == []


@pytest.mark.parametrize("where", ["denoiser", "encode", "decode"])
def test_memory_that_runs_out_fails_its_job_alone(
    where: str, wired: Model, held: Held, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    """A long prompt's seats, what a prompt or a large picture takes: the device is intact."""
    long = {"prompt": "red apple blue cat " * 9, "seed": 3, "steps": 2, "long_prompt": True}
    with running(wired, seats=2, ready=held.hold) as at_work:
        neighbour = at_work.submit(**CAT)
        held.begun()
        setattr(held, f"before_{where}", raising(OutOfMemory("8 seats: the GPU's memory is full")))
        refused = at_work.submit(**long, images=2)
        held.release()
        assert box_of(refused).error() == ("RESOURCE_EXHAUSTED", "8 seats: the GPU's memory is full")
        setattr(held, f"before_{where}", lambda: None)
        if where != "decode":  # the neighbour may have come to it as well
            assert isinstance(box_of(neighbour).end(), Done)
        after = at_work.submit(**long)
        assert isinstance(box_of(after).end(), Done) and at_work.deaths == 0 and at_work.leftovers == []
        np.testing.assert_array_equal(box_of(after).images[0], alone(model, **long))
    assert "Traceback" not in caplog.text, "it is no bug of ours"


@pytest.mark.parametrize("where", ["encode", "run", "decode"])
def test_a_device_error_ends_every_job_and_the_device(
    where: str, wired: Model, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    with running(wired, seats=1, ready=held.hold) as at_work:
        jobs = [at_work.submit(**APPLE)]
        held.begun()
        jobs += [at_work.submit(prompt="the photo", images=2), at_work.submit(**CAT)]
        setattr(held, f"before_{where}", raising(DeviceError("lost")))
        held.release()
        ends = [box_of(job).end() for job in jobs]
        at_work.device._thread.join(30)
        assert at_work.deaths == 1 and at_work.leftovers == []
        # Only a prompt is encoded after the first has its picture.
        done = [isinstance(end, Done) for end in ends]
        assert done == [where == "encode", False, False]
        for job in jobs[1:]:
            assert box_of(job).error() == ("UNAVAILABLE", "the device failed: lost")
        assert [box_of(job).ends for job in jobs] == [1, 1, 1]
        with pytest.raises(NotServing, match="the device has failed"):
            at_work.submit(**APPLE)
        assert at_work.metric("rows_live") == 0 and at_work.metric("queue_depth") == 0
    assert "the device failed: lost" in caplog.text and "Traceback" not in caplog.text


def test_a_picture_that_was_decoded_when_the_device_failed_is_delivered(
    wired: Model, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on, encode = threading.Event(), threading.Event(), pictures.encode

    def slow(*arguments) -> bytes:
        writing.set()
        assert go_on.wait(30)
        return encode(*arguments)

    monkeypatch.setattr(pictures, "encode", slow)
    with running(wired) as at_work:
        job = at_work.submit(**APPLE)
        assert writing.wait(30)
        held.before_run = raising(DeviceError("lost"))
        lost = at_work.submit(**CAT)
        eventually(lambda: at_work.device._stopping, True)
        go_on.set()
        assert isinstance(box_of(job).end(), Done) and list(box_of(job).images) == [0]
        assert box_of(lost).error()[0] == "UNAVAILABLE"


def test_an_unforeseen_error_in_a_step_is_the_devices_and_says_nothing_of_itself(wired: Model, held: Held) -> None:
    with running(wired) as at_work:
        held.before_run = raising(ValueError("some inner words"))
        assert box_of(at_work.submit(**APPLE)).error() == ("UNAVAILABLE", "the device failed")
        at_work.device._thread.join(30)
        assert at_work.deaths == 1


def test_stopping_ends_every_job(wired: Model, held: Held) -> None:
    with running(wired, seats=1, ready=held.hold) as at_work:
        seated = at_work.submit(prompt="a cat", steps=100)
        held.begun()
        waiting = at_work.submit(**CAT)
        with at_work.device._changed:
            at_work.device._stopping = True
        held.release()
        for job in (seated, waiting):
            assert box_of(job).error() == ("UNAVAILABLE", "the server stopped before the request was done")
    assert at_work.leftovers == [] and at_work.deaths == 0
    with pytest.raises(NotServing):
        at_work.submit(**APPLE)


def test_a_prompt_is_encoded_once(wired: Model, held: Held) -> None:
    with running(wired) as at_work:
        first = box_of(at_work.submit(prompt="a red apple", negative_prompt="blue", steps=1)).end()
        assert len(held.encoded) == 2
        again = box_of(at_work.submit(prompt="blue", negative_prompt="a red apple", steps=1)).end()
        assert len(held.encoded) == 2
    assert isinstance(first, Done) and isinstance(again, Done)
    took = [end.timings.parts(end.timings.written)["encode"] for end in (first, again)]
    assert took[0] > 0 and took[1] == 0


def test_more_pictures_than_seats_take_their_turns(wired: Model, held: Held, model: Model) -> None:
    with running(wired, seats=2) as at_work:
        job = at_work.submit(images=5, **APPLE)
        end = box_of(job).end()
    assert isinstance(end, Done) and box_of(job).started == [0, 1, 2, 3, 4]
    assert sorted(box_of(job).images) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(box_of(job).images[4], alone(model, **{**APPLE, "seed": 5}))
    assert [event.seed for event in box_of(job).events if isinstance(event, Image) and event.index == 4] == [5]
    assert 1 < end.timings.seats_shared <= 2


def test_seeds_wrap_around(wired: Model, model: Model) -> None:
    with running(wired) as at_work:
        job = at_work.submit(**{**APPLE, "images": 2, "seed": 2**32 - 1})
        box_of(job).end()
    np.testing.assert_array_equal(box_of(job).images[1], alone(model, **{**APPLE, "seed": 0}))


def test_the_queue_is_bounded_at_the_door(wired: Model, held: Held) -> None:
    with running(wired, seats=1, admission=Admission(queue_jobs=1), ready=held.hold) as at_work:
        job = at_work.submit(**APPLE)
        held.begun()
        waiting = at_work.submit(**CAT)
        with pytest.raises(Busy, match="1 requests are waiting; at most 1 may"):
            at_work.submit(**CAT)
        held.release()
        assert isinstance(box_of(job).end(), Done) and isinstance(box_of(waiting).end(), Done)


def test_a_higher_priority_is_seated_before_those_who_wait(wired: Model, held: Held) -> None:
    order: list[int] = []
    with running(wired, seats=1, ready=held.hold) as at_work:
        at_work.device._jobs._steps = 10**9  # of a usual request: in four of them who waits rises by a level
        at_work.submit(**APPLE)
        held.begun()
        jobs = [at_work.submit(prompt="a cat", steps=1, priority=priority) for priority in (0, -3, 7, 0)]
        for number, job in enumerate(jobs):
            posted = job.mailbox.post

            def post(event, number=number, posted=posted) -> None:
                if isinstance(event, Started):
                    order.append(number)
                posted(event)

            job.mailbox.post = post  # type: ignore[method-assign]
        held.release()
        for job in jobs:
            box_of(job).end()
    assert order == [2, 0, 3, 1]


def test_steps_before_one_that_fails_are_told(wired: Model, held: Held) -> None:
    with running(wired) as at_work:
        held.runs.clear()
        held.before_run = lambda: raising(RuntimeError("broken"))() if len(held.runs) == 4 else None
        job = at_work.submit(prompt="a", steps=6)
        assert isinstance(box_of(job).end(), Failed)
        assert [event.step for event in box_of(job).events if isinstance(event, Step)][-1] == 3
        assert at_work.metric("seat_steps_total") == 3
