"""What a client sees while its request is on its way, and what the server says about it afterwards."""

from __future__ import annotations

import io
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from PIL import Image as PILImage

from engines.errors import BackendError
from engines.model import Model
from latentd import Client, ServerError
from latentd.events import Done, Image, Preview, Queued, Started, Step
from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub
from server.app import Server
from server.events import PARTS, Event
from server.job import Job
from server.mailbox import Mailbox
from tests.support.held import Held, eventually, raising
from tests.support.jobs import alone, decoded
from tests.support.patience import PATIENCE
from tests.support.serving import address, serving


def test_events_come_in_order(server: Server) -> None:
    with Client(address(server)) as client:
        events = list(client.stream("a red apple", images=2, steps=5, preview_every=2, seed=9))
    queued, *middle, done = events
    assert isinstance(queued, Queued) and isinstance(done, Done)
    assert (queued.seed, queued.steps, queued.images, queued.ahead) == (9, 5, 2, 0)
    assert not any(isinstance(event, Queued | Done) for event in middle)
    for index in (0, 1):
        own = [event for event in middle if event.index == index]
        assert isinstance(own[0], Started) and isinstance(own[-1], Image)
        steps = [event.step for event in own if isinstance(event, Step)]
        previews = [event.step for event in own if isinstance(event, Preview)]
        assert steps == sorted(set(steps)) and steps[-1] == 5
        assert previews == sorted(set(previews)) and set(previews) <= {2, 4}
    assert done.timings.steps == 5 and done.timings.evaluations == 5
    assert done.timings.denoise_ms > 0 and done.timings.decode_ms > 0


def test_the_timings_add_up_to_what_the_server_itself_measured(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked for. Only the sending of the last message is in no part."""
    calls: list[tuple[Job, float, float]] = []
    posted: dict[Mailbox, float] = {}  # when each had its last event
    ended, post = server.service.ended, Mailbox.post

    def note_post(mailbox: Mailbox, event: Event) -> None:
        posted[mailbox] = time.monotonic()
        post(mailbox, event)

    def note(door: str, error: None, job: Job, request_id: str, started: float, left: float | None = None) -> None:
        calls.append((job, started, time.monotonic()))
        ended(door, error, job, request_id, started, left)

    monkeypatch.setattr(server.service, "ended", note)
    monkeypatch.setattr(Mailbox, "post", note_post)
    caplog.set_level(logging.INFO, "latentd.request")
    told = []
    with Client(address(server)) as client:
        for asked in ({}, {"images": 5}, {"images": 2, "steps": 1, "preview_every": 1}, {"steps": 2}, {}):
            *_, done = client.stream("a red apple", **asked)
            assert isinstance(done, Done)
            told.append(sum(getattr(done.timings, f"{part}_ms") for part in PARTS))
    eventually(lambda: len(calls), 5)
    for (job, started, over), milliseconds in zip(calls, told, strict=True):
        assert milliseconds == pytest.approx(1e3 * (job.timings.delivered - started), abs=0.01)
        seldom = {"read", "encode", "decode_wait", "judge"}
        assert all(ms > 0 for part, ms in job.timings.parts(0).items() if part not in seldom)
        assert job.timings.written <= posted[job.mailbox] <= job.timings.delivered <= over, "when the last one is sent"
    line = caplog.records[-1].getMessage()
    assert [f"{part}_ms=" in line for part in PARTS] == [True] * len(PARTS) and "seats_shared=" in line


def test_every_nth_step_has_a_preview_at_full_size(wired: Model, held: Held) -> None:
    with serving(wired) as server, Client(address(server)) as client:
        held.hold()
        previews = []
        for event in client.stream("a red apple", steps=7, preview_every=2):
            match event:
                case Started():
                    steps_to_preview = 2
                case Preview():
                    previews.append(event)
                    steps_to_preview = 2 if event.step < 6 else 1
                case _:
                    continue
            for _ in range(steps_to_preview):  # no step before the last preview has been read
                held.begun()
                held.let()
    assert [event.step for event in previews] == [2, 4, 6]
    for event in previews:
        image = PILImage.open(io.BytesIO(event.jpeg))
        assert (image.format, image.size) == ("JPEG", (24, 24))
    assert len({event.jpeg for event in previews}) == 3


def test_the_map_is_fitted_off_the_event_loop_and_before_the_request_is_queued(wired: Model, held: Held) -> None:
    """Others are served meanwhile, and a request of few steps has its previews all the same."""
    fitting, go_on = threading.Event(), threading.Event()

    def gate() -> None:
        fitting.set()
        assert go_on.wait(PATIENCE)

    held.before_moments = gate
    with serving(wired) as server, Client(address(server)) as client, ThreadPoolExecutor(1) as pool:
        events = client.stream("a red apple", steps=2, preview_every=1)
        first = pool.submit(next, events)
        assert fitting.wait(PATIENCE)
        with Client(address(server)) as other:
            assert len(other.generate("the cat", steps=1)) == 1, "asks for no preview, and waits for none"
        assert not first.done() and server.service.device and not server.service.device._jobs
        held.hold()
        go_on.set()
        assert isinstance(first.result(PATIENCE), Queued)
        held.begun()
        held.let()
        assert any(isinstance(event, Preview) for event in events), "before the last step is taken"
        held.release()
        assert [type(event) for event in events][-2:] == [Image, Done]


@pytest.mark.parametrize("error", [BackendError("the file has been written to"), RuntimeError("inner words")])
def test_a_map_that_cannot_be_fitted_costs_previews_only(
    error: Exception, wired: Model, held: Held, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[None] = []
    held.before_moments = lambda: (tries.append(None), raising(error)())
    with serving(wired) as server, Client(address(server)) as client:
        events = list(client.stream("a red apple", steps=4, preview_every=1))
        assert [type(event) for event in events][-2:] == [Image, Done] and len(tries) == 1, "not tried at every step"
        assert not any(isinstance(event, Preview) for event in events)
        held.before_moments = lambda: None
        assert any(isinstance(event, Preview) for event in client.stream("a red apple", steps=4, preview_every=1))
    (told,) = (record for record in caplog.records if record.getMessage().startswith("previews cannot be made"))
    assert bool(told.exc_info) != isinstance(error, BackendError), "a sentence, or a traceback"


def test_the_last_step_has_no_preview(server: Server) -> None:
    with Client(address(server)) as client:
        events = list(client.stream("a red apple", steps=4, preview_every=4))
    assert not any(isinstance(event, Preview) for event in events)


def test_nobody_asks_and_no_preview_is_computed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    for stepper in server.service.device._lanes._steppers.values():
        step = stepper.step

        def watched(seats, predict=(), step=step) -> None:
            asked.extend(predict)
            step(seats, predict)

        monkeypatch.setattr(stepper, "step", watched)
    with Client(address(server)) as client:
        client.generate("a red apple", steps=4)
        assert asked == []
        client.generate("a red apple", steps=4, preview_every=1)
        assert asked == [0, 0, 0]


def test_a_slow_reader_loses_no_image_and_holds_nobody_up(server: Server, model: Model) -> None:
    with grpc.insecure_channel(address(server)) as channel, Client(address(server)) as other:
        slow = ImagesStub(channel).Generate(pb.GenerateRequest(prompt="the cat", seed=4, images=8, preview_every=1))
        (fast,) = other.generate("a red apple", seed=4)
        events = list(slow)
    assert fast.seed == 4
    images = {event.image.index: event.image for event in events if event.HasField("image")}
    assert sorted(images) == list(range(8))
    for index, image in images.items():
        assert (decoded(image.data) == alone(model, prompt="the cat", seed=4 + index)).all()


def test_words_that_were_cut_are_told(server: Server) -> None:
    long = "apple " * 30
    told = {("apple", ""): (False, False), (long, "cat"): (True, False), ("a", long): (False, True)}
    for (prompt, negative), cut in told.items():
        with Client(address(server)) as client:
            queued, *_ = client.stream(prompt, negative_prompt=negative, steps=1)
        assert isinstance(queued, Queued)
        assert (queued.prompt_cut, queued.negative_prompt_cut) == cut


def call(server: Server, *metadata: tuple[str, str], **fields) -> grpc.Call:
    with grpc.insecure_channel(address(server)) as channel:
        started = ImagesStub(channel).Generate(pb.GenerateRequest(**fields), metadata=metadata)
        try:
            for _ in started:
                pass
        except grpc.RpcError:
            assert started.code() is not grpc.StatusCode.OK
    return started


def told_id(call: grpc.Call) -> str:
    return str({key: value for key, value in call.trailing_metadata()}["x-request-id"])


def lines_of(caplog: pytest.LogCaptureFixture, id: str) -> list[str]:
    """What the log says at a request's end, once it has said it."""

    def found() -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.name == "latentd.request" and getattr(record, "request", "") == id
        ]

    eventually(lambda: len(found()), 1)
    return found()


@pytest.mark.parametrize(("steps", "code"), [(1, "OK"), (0, "INVALID_ARGUMENT")])
def test_the_requests_id_comes_back_and_stands_in_the_log(steps: int, code: str, server: Server, caplog) -> None:
    id = f"order-66:{steps}"
    with caplog.at_level(logging.INFO, "latentd.request"):
        assert told_id(call(server, ("x-request-id", id), steps=steps)) == id
        (line,) = lines_of(caplog, id)
    assert line.startswith(f"door=grpc code={code} ms=")


@pytest.mark.parametrize("asked", ["", "a b", "x" * 65, "id;rm"])
def test_an_id_that_does_not_belong_into_a_log_is_replaced(asked: str, server: Server) -> None:
    made = told_id(call(server, ("x-request-id", asked), steps=1))
    assert made and made != asked and made.isalnum()


def test_an_id_that_stands_twice(server: Server) -> None:
    """A proxy may repeat it; of two that differ neither is taken."""
    key = "x-request-id"
    assert told_id(call(server, (key, "one"), (key, "one"), steps=1)) == "one"
    assert told_id(call(server, (key, "one"), (key, "two"), steps=1)) not in ("one", "two", "")


def test_prompts_never_appear_in_the_log(server: Server, caplog) -> None:
    secret = "the apple of my eye"
    with caplog.at_level(logging.DEBUG):
        call(server, ("x-request-id", "made"), prompt=secret, negative_prompt=secret, steps=1)
        call(server, ("x-request-id", "nul"), prompt=secret + "\0")
        call(server, ("x-request-id", "long"), prompt=secret * 1000)
        for id in ("made", "nul", "long"):
            lines_of(caplog, id)
    assert "apple" not in caplog.text and "eye" not in caplog.text


def test_errors_carry_when_to_ask_again(wired: Model, held: Held) -> None:
    with serving(wired, seats=1, queue_jobs=1) as server, Client(address(server)) as client:
        held.hold()
        streams = [client.stream("a red apple", steps=2) for _ in range(2)]
        next(streams[0])
        held.begun()  # the first has the seat
        next(streams[1])
        with pytest.raises(ServerError, match="1 requests are waiting; at most 1 may") as refused:
            client.generate("a cat")
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.value.retry_after == pytest.approx(1.0)
        held.release()
        for stream in streams:
            assert isinstance(list(stream)[-1], Done)


def test_pictures_beside_one_that_failed_arrive_before_the_error(wired: Model, held: Held) -> None:
    def spoil(denoiser, rows) -> None:
        if 2 in rows:
            denoiser.outputs[2] = float("nan")

    with serving(wired, seats=2) as server, Client(address(server)) as client:
        held.after_run = spoil  # the second seat's
        with pytest.raises(ServerError) as failed:
            client.generate("a red apple", images=2, seed=3)
        assert (failed.value.code, failed.value.message) == (
            grpc.StatusCode.INTERNAL,
            "image 1 came out as not a number",
        )
        assert [picture.index for picture in failed.value.pictures] == [0]
