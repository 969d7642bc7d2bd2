"""One table, doors x (limits, errors, cancellation, deadline, previews, slow reader): each cell a test."""

from __future__ import annotations

import io
import json
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from engines.model import Model
from server.app import Server
from server.wish import Size
from tests.support.doors import DOORS, Door
from tests.support.held import Held, eventually
from tests.support.jobs import alone, decoded
from tests.support.patience import PATIENCE
from tests.support.serving import http, metric, nothing_left, quick, serving

every_door = pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)


@pytest.fixture(scope="module")
def server(model: Model, sizes: tuple[Size, ...]) -> Iterator[Server]:
    with serving(model, seats=2, sizes=sizes, http_port=0) as server:
        yield server


def ended(server: Server, door: Door, code: str) -> float:
    return metric(server, "requests_total", door=door.label, code=code)


@every_door
def test_the_same_request_gives_the_same_bytes(door: Door, server: Server, sizes: tuple[Size, ...]) -> None:
    (width, height), one = sizes[1], 1
    asked = {"prompt": "a red apple", "negative_prompt": "blue", "seed": 7, "steps": 5, "guidance": 4.0}
    asked |= {"sampler": "euler_karras", "width": width, "height": height, "images": one, "clip_skip": 0}
    if door.label == "a1111":
        del asked["clip_skip"]
    before = ended(server, door, "OK")
    outcome, other = door.ask(server, **asked), DOORS[0].ask(server, **{**asked, "clip_skip": 0})
    assert outcome.pictures == other.pictures and len(outcome.pictures) == 1
    assert outcome.pictures != door.ask(server, **{**asked, "seed": 8}).pictures, "the comparison can fail"
    eventually(lambda: ended(server, door, "OK") >= before + 2, True)


@pytest.mark.parametrize("door", [door for door in DOORS if door.most is None], ids=lambda door: door.name)
def test_several_pictures_come_in_order_and_as_the_file_that_was_asked_for(
    door: Door, server: Server, model: Model
) -> None:
    outcome = door.ask(server, prompt="the cat", seed=3, images=2, steps=2)
    for index, picture in enumerate(outcome.pictures):
        expected = alone(model, prompt="the cat", seed=3 + index, steps=2)
        np.testing.assert_array_equal(decoded(picture), expected)
    (picture,) = door.ask(server, prompt="the cat", steps=2, format="webp").pictures
    assert PILImage.open(io.BytesIO(picture)).format == "WEBP"


@pytest.mark.parametrize(
    ("fields", "name", "told"),
    [
        ({"prompt": "x" * 4097}, "prompt", "{} has 4097 characters; at most 4096 are taken"),
        ({"prompt": "an \0 apple"}, "prompt", "{} has a NUL character at position 3; text has none"),
        ({"negative_prompt": "x" * 4097}, "negative_prompt", "{} has 4097 characters; at most 4096 are taken"),
        ({"steps": 0}, "steps", "{} is 0; it must be 1 to 150"),
        ({"steps": 151}, "steps", "{} is 151; it must be 1 to 150"),
        ({"guidance": 31.0}, "guidance", "{} is 31; it must be 0 to 30"),
        ({"images": 9}, "images", "{} is 9; it must be 1 to 8"),
        ({"images": 0}, "images", "{} is 0; it must be 1 to 8"),
        ({"width": 25, "height": 25}, "width", "width x height is 25x25; the sizes served are 24x24, 32x24, 24x28"),
    ],
)
@every_door
def test_limits(door: Door, fields: dict[str, Any], name: str, told: str, server: Server) -> None:
    if door.most and "images" in fields:
        told = f"{{}} is {fields['images']}; a stream has one picture"
    outcome = door.ask(server, **fields)
    assert (outcome.code, outcome.pictures) == ("INVALID_ARGUMENT", [])
    assert outcome.message == told.format(door.names.get(name, name))
    if outcome.field is not None:
        assert outcome.field == door.names.get(name, name)
    else:
        assert door.label in ("grpc", "oip", "a1111"), "they name no field but in the sentence"
    assert outcome.request_id


@every_door
def test_what_is_no_sampler_of_this_door(door: Door, server: Server) -> None:
    outcome = door.ask(server, sampler="dpm++")
    assert outcome.code == "INVALID_ARGUMENT"
    assert outcome.message.startswith(f"{door.names.get('sampler', 'sampler')} is 'dpm++'; ")


@every_door
def test_errors_another_model(door: Door, server: Server) -> None:
    outcome = door.ask(server, model="sdxl")
    assert outcome.code == ("INVALID_ARGUMENT" if door.label == "a1111" else "NOT_FOUND")
    assert "'sdxl'" in outcome.message and server.service.model_id in outcome.message


@every_door
def test_errors_a_server_that_drains(door: Door, server: Server) -> None:
    server.service.draining = True
    try:
        outcome = door.ask(server, prompt="a")
    finally:
        server.service.draining = False
    assert (outcome.code, outcome.message) == ("UNAVAILABLE", "this server is draining; ask another one")


@every_door
def test_errors_a_picture_that_is_not_a_number(door: Door, wired: Model, held: Held) -> None:
    def spoil(denoiser, rows) -> None:
        denoiser.outputs[0] = float("nan")

    with serving(wired, http_port=0) as server:
        held.after_run = spoil
        outcome = door.ask(server, prompt="a red apple", steps=2)
        assert (outcome.code, outcome.message) == ("INTERNAL", "image 0 came out as not a number")
        eventually(lambda: ended(server, door, "INTERNAL"), 1)


@every_door
def test_errors_a_fault_of_ours_is_one_sentence(door: Door, server: Server, monkeypatch, caplog) -> None:
    def fault(*args, **fields) -> None:
        raise RuntimeError("inner words")

    monkeypatch.setattr(server.service, "submit", fault)
    outcome = door.ask(server, prompt="a")
    assert outcome.code == "INTERNAL" and outcome.message.startswith("an unexpected error")
    assert "inner words" in caplog.text, "the log has it"


@every_door
def test_errors_a_full_queue_says_when_to_ask_again(door: Door, wired: Model, held: Held) -> None:
    with serving(wired, seats=1, queue_jobs=1, http_port=0) as server:
        held.hold()
        first = DOORS[0].send(server, prompt="a red apple", steps=2)
        held.begun()
        second = DOORS[0].send(server, prompt="a red apple", steps=2)
        outcome = door.ask(server, prompt="a cat")
        assert outcome.code == "RESOURCE_EXHAUSTED"
        assert outcome.message == "1 requests are waiting; at most 1 may"
        assert outcome.retry_after == pytest.approx(1.0)
        held.release()
        assert len(first.outcome().pictures) == len(second.outcome().pictures) == 1


@every_door
def test_cancellation_in_a_seat(door: Door, wired: Model, held: Held) -> None:
    with serving(wired, http_port=0) as server:
        held.hold()
        held.runs.clear()
        sent = door.send(server, prompt="a red apple", steps=100)
        held.begun()
        sent.leave()
        eventually(lambda: ended(server, door, "CANCELLED"), 1)
        held.release()
        nothing_left(server)
        assert len(held.runs) == 1, "no further step"
        assert metric(server, "cancelled_total", where="seat") == 1


@every_door
def test_cancellation_in_the_queue(door: Door, wired: Model, held: Held) -> None:
    with serving(wired, seats=1, http_port=0) as server:
        held.hold()
        held.runs.clear()
        first = DOORS[0].send(server, prompt="a red apple", steps=2)
        held.begun()
        sent = door.send(server, prompt="a cat", steps=100)
        eventually(lambda: metric(server, "queue_depth"), 1)
        sent.leave()
        eventually(lambda: ended(server, door, "CANCELLED"), 1)
        held.release()
        assert len(first.outcome().pictures) == 1
        nothing_left(server)
        assert len(held.runs) == 2


@every_door
def test_deadline(door: Door, wired: Model, held: Held) -> None:
    with serving(wired, seats=1, http_port=0) as server:
        quick(server)
        held.hold()
        first = DOORS[0].send(server, prompt="a red apple", steps=2)
        held.begun()
        seconds = 2.0 if door.label in ("grpc", "oip") else 0.3  # there a client's library may end the call unsent
        outcome = door.ask(server, seconds, prompt="a cat", steps=2)
        assert outcome.code == "DEADLINE_EXCEEDED" and not outcome.pictures
        eventually(lambda: ended(server, door, "DEADLINE_EXCEEDED"), 1)
        held.release()
        assert len(first.outcome().pictures) == 1


@every_door
def test_previews(door: Door, wired: Model, held: Held) -> None:
    """Of the forming picture, before it is there."""
    with serving(wired, http_port=0) as server:
        DOORS[0].ask(server, prompt="a", steps=8, preview_every=1)  # fits the map
        held.hold()
        fields: dict[str, Any] = {"prompt": "a red apple", "steps": 8}
        if door.streams:
            sent = door.send(server, **fields, preview_every=2)
        elif door.label == "oip":
            outcome = door.ask(server, **fields, preview_every=2)
            assert outcome.message.startswith("'preview_every' is no input of ")
            return
        elif door.label == "openai":
            outcome = door.ask(server, **fields, preview_every=2)
            assert outcome.message == "partial_images is 3; they come in a stream only: set stream"
            return
        else:
            sent = door.send(server, **fields)
        seen: list[bytes] = []
        for _ in range(7):
            held.begun()
            held.let()
        held.begun()
        if not door.streams:  # A1111's clients ask for it

            def current() -> bool:
                with urllib.request.urlopen(f"{http(server)}/sdapi/v1/progress", timeout=PATIENCE) as answer:
                    told = json.load(answer)
                seen[:] = [told["current_image"]] if told["current_image"] else []
                return bool(seen)

            eventually(current, True)
        held.release()
        outcome = sent.outcome()
        previews = outcome.previews if door.streams else seen
        assert len(outcome.pictures) == 1 and 1 <= len(previews) <= 3


@every_door
def test_a_slow_reader_holds_nobody_up(door: Door, server: Server, model: Model) -> None:
    images = door.most or 8
    slow = door.send(server, prompt="the cat", seed=4, images=images, **({"preview_every": 1} if door.streams else {}))
    (fast,) = DOORS[0].ask(server, prompt="a red apple", seed=4).pictures
    pictures = slow.outcome().pictures
    assert fast and len(pictures) == images
    expected = [DOORS[0].ask(server, prompt="the cat", seed=4 + index).pictures[0] for index in range(images)]
    assert pictures == expected


@every_door
def test_a_request_that_runs_when_the_server_drains_is_finished(door: Door, wired: Model, held: Held) -> None:
    outcomes: list[Any] = []
    with serving(wired, http_port=0, stopping=30.0) as server:
        held.hold()
        sent = door.send(server, prompt="a red apple", steps=2)
        held.begun()
        reader = threading.Thread(target=lambda: outcomes.append(sent.outcome()))
        reader.start()
        threading.Timer(0, lambda: (eventually(lambda: server.service.draining, True), held.release())).start()
    reader.join(PATIENCE)
    assert outcomes[0].code == "OK" and len(outcomes[0].pictures) == 1


@every_door
def test_limits_of_calls_count_at_every_door(door: Door, wired: Model, held: Held) -> None:
    with serving(wired, http_port=0, max_calls_caller=1) as server:
        held.hold()
        first = DOORS[-1].send(server, prompt="a", steps=1)
        held.begun()
        outcome = door.ask(server, prompt="a")
        assert outcome.code == "RESOURCE_EXHAUSTED" and outcome.retry_after == pytest.approx(1.0)
        assert outcome.message == "1 calls of 127.0.0.1 are open; at most 1 of a caller may be"
        with urllib.request.urlopen(f"{http(server)}/readyz", timeout=PATIENCE) as ready:
            assert ready.status == 200, "health has places of its own"
        held.release()
        assert len(first.outcome().pictures) == 1
