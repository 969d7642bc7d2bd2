"""latentd.v1's messages and what the server knows, each into the other."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from latentd.v1 import images_pb2 as pb
from server.doors.messages import FORMATS, event_message, image_request
from server.events import Image
from server.job import Job
from server.request import ImageRequest
from server.wish import FORMATS as WORDS
from tests.support.jobs import idle_job, wish

OPTIONAL = [field.name for field in pb.GenerateRequest.DESCRIPTOR.fields if field.has_presence]


def test_a_request_has_every_field_of_the_message_and_no_other() -> None:
    assert {*asdict(ImageRequest())} == {*pb.GenerateRequest.DESCRIPTOR.fields_by_name}


def test_what_the_client_left_out_is_none() -> None:
    request = image_request(pb.GenerateRequest())
    assert len(OPTIONAL) == 14 and all(getattr(request, name) is None for name in OPTIONAL)
    assert (request.model, request.format) == (None, None)


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_zero_that_the_client_sent_is_no_absence(name: str) -> None:
    zero = "" if name == "sampler" else 0
    assert getattr(image_request(pb.GenerateRequest(**{name: zero})), name) == zero


def test_every_field_arrives() -> None:
    fields = {
        **{"model": "m", "prompt": "a cat", "negative_prompt": "blue", "width": 64, "height": 32, "steps": 7},
        **{"guidance": 2.5, "sampler": "ddim", "seed": 2**32 - 1, "images": 3, "preview_every": 2, "priority": -4},
        **{"long_prompt": True, "prompt_weights": True, "clip_skip": 1, "init_image": b"file", "mask": b"another"},
        **{"strength": 0.5, "fit": "pad", "guidance_start": 0.25, "guidance_end": 0.75, "quality": 70},
        **{"style_image": b"third", "style_weight": 0.25, "keep": 2, "progress": False},
        **{"original_size": "64x32", "crop": "0x8", "target_size": "8x8"},
    }
    loras = [pb.Lora(name="one"), pb.Lora(name="two", weight=-0.5), pb.Lora(name="three", weight=0)]
    message = pb.GenerateRequest(format=pb.IMAGE_FORMAT_WEBP, loras=loras, **fields)  # type: ignore[arg-type]
    named = [("one", 1.0), ("two", -0.5), ("three", 0.0)]
    assert asdict(image_request(message)) == {"format": "webp", "loras": named, **fields}


def test_formats_are_words_inside_and_numbers_on_the_wire() -> None:
    assert FORMATS.keys() == set(pb.ImageFormat.values()) and {*FORMATS.values()} == {None, *WORDS}
    for number, word in FORMATS.items():
        assert image_request(pb.GenerateRequest(format=number)).format == word
    unknown = pb.GenerateRequest.FromString(pb.GenerateRequest(format=77).SerializeToString())  # type: ignore[arg-type]
    assert image_request(unknown).format == "77"
    job = idle_job(wish(seed=5))  # of png
    image = pb.Image(data=b"file", format=pb.IMAGE_FORMAT_PNG, seed=5, index=0, width=8, height=8)
    assert read_event(Image(0, b"file", 5), job) == pb.GenerateEvent(image=image)
    image.score = 0.0
    assert read_event(Image(0, b"file", 5, 0.0), job) == pb.GenerateEvent(image=image)
    for size in (0, 100, 127, 128, 16_383, 16_384, 3_000_000):  # lengths of one to four bytes
        image.data = b"x" * size
        assert read_event(Image(0, image.data, 5, 0.0), job) == pb.GenerateEvent(image=image)


def read_event(event: Image, job: Job) -> pb.GenerateEvent:
    """As a client reads what is sent."""
    written = event_message(event, job)
    assert isinstance(written, bytes)
    return pb.GenerateEvent.FromString(written)
