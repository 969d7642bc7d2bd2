"""Pictures through gRPC against engines/generate.py, bit for bit: alone, and in any company."""

from __future__ import annotations

import asyncio
import io

import grpc
import numpy as np
import pytest
from PIL import Image as PILImage

from engines.model import Model
from latentd import AsyncClient, Client, Picture
from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub
from pipeline.samplers import SAMPLERS
from server.app import Server
from server.wish import Size
from tests.support.jobs import Pixels, alone, decoded
from tests.support.serving import address, serving


def pixels(picture: Picture) -> Pixels:
    assert picture.format == "png"
    return np.asarray(picture.image)


def test_one_guided_picture(server: Server, model: Model) -> None:
    asked = {"prompt": "a red apple", "negative_prompt": "blue", "seed": 7, "steps": 6, "guidance": 4.0}
    expected = alone(model, **asked)
    with Client(address(server)) as client:
        (picture,) = client.generate(**asked)
    np.testing.assert_array_equal(pixels(picture), expected)
    assert (picture.seed, picture.index, picture.width, picture.height) == (7, 0, 24, 24)


@pytest.mark.parametrize(
    "other", [{"seed": 8}, {"guidance": 4.5}, {"sampler": "euler"}, {"steps": 7}, {"prompt": "a red cat"}]
)
def test_another_request_is_another_picture(other, server: Server, model: Model) -> None:
    """The comparison can fail: every field counts."""
    asked = {"prompt": "a red apple", "seed": 7, "steps": 6, "guidance": 4.0, "sampler": "ddim"}
    with Client(address(server)) as client:
        (picture,) = client.generate(**{**asked, **other})
    assert (pixels(picture) != alone(model, **asked)).any()


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_unguided_with_each_sampler_at_each_size(sampler: str, server: Server, sizes, model: Model) -> None:
    for width, height in sizes:
        asked = {"prompt": "a photo", "seed": 3, "steps": 3, "guidance": 1.0, "sampler": sampler}
        asked |= {"width": width, "height": height}
        expected = alone(model, **asked)
        assert expected.shape == (height, width, 3)
        with Client(address(server)) as client:
            (picture,) = client.generate(**asked)
        np.testing.assert_array_equal(pixels(picture), expected)


def test_the_models_defaults_are_what_absent_fields_mean(server: Server, model: Model) -> None:
    expected = alone(model, prompt="the blue cat", seed=11)
    with Client(address(server)) as client:
        (picture,) = client.generate("the blue cat", seed=11)
    np.testing.assert_array_equal(pixels(picture), expected)


def test_a_drawn_seed_is_reported_and_makes_the_same_picture_again(server: Server) -> None:
    with Client(address(server)) as client:
        drawn, other = (client.generate("an apple")[0] for _ in range(2))
        (again,) = client.generate("an apple", seed=drawn.seed)
    assert drawn.seed != other.seed
    np.testing.assert_array_equal(pixels(again), pixels(drawn))
    assert (pixels(other) != pixels(drawn)).any()


def sixteen(sizes: tuple[Size, ...]) -> list[dict]:
    """Sixteen requests of which no two agree."""
    prompts = ("a red apple", "the blue cat", "photo of the cat", "")
    return [
        {
            "prompt": prompts[n % 4],
            "negative_prompt": prompts[(n // 4 + 1) % 4],
            "seed": 1000 + n,
            "steps": 2 + n % 7,
            "guidance": (3.0, 1.0, 7.5, 0.0, 1.5)[n % 5],
            "sampler": list(SAMPLERS)[n % len(SAMPLERS)],
            "images": 1 + n % 2,
            "width": sizes[n % 3][0],
            "height": sizes[n % 3][1],
            "priority": n % 3 - 1,
        }
        for n in range(16)
    ]


def test_sixteen_at_once_equal_those_made_alone(sizes: tuple[Size, ...], model: Model) -> None:
    asked = sixteen(sizes)
    expected = [
        [alone(model, **{**each, "seed": each["seed"] + index}) for index in range(each["images"])] for each in asked
    ]

    async def all_at_once(server: Server) -> list[list[Picture]]:
        async with AsyncClient(address(server)) as client:
            return await asyncio.gather(*(client.generate(**each) for each in asked))

    with serving(model, seats=3, sizes=sizes, priority_callers=("127.0.0.0/8",)) as server:  # 24 pictures on nine seats
        got = asyncio.run(all_at_once(server))
    for pictures, wanted in zip(got, expected, strict=True):
        assert [picture.index for picture in pictures] == list(range(len(wanted)))
        for picture, image in zip(pictures, wanted, strict=True):
            np.testing.assert_array_equal(pixels(picture), image)
    timings = [pictures[0].timings for pictures in got]
    assert max(told.seats_shared for told in timings if told) > 1, "nobody shared a step"


@pytest.mark.parametrize(("format", "wire"), [("png", 1), ("jpeg", 2), ("webp", 3)])
def test_the_format_asked_for_is_the_format_sent(format: str, wire: int, server: Server, model: Model) -> None:
    asked = {"prompt": "a red apple", "seed": 5}
    with Client(address(server)) as client:
        (picture,) = client.generate(**asked, format=format)
    image = PILImage.open(io.BytesIO(picture.data))
    assert (picture.format, image.format, image.size) == (format, format.upper(), (24, 24))
    error = abs(np.asarray(image.convert("RGB")).astype(int) - alone(model, **asked)).mean()
    assert error == 0 if format == "png" else error < 40, "random weights draw noise, which compresses badly"


def test_blocking_answers_the_same_at_once(server: Server, model: Model) -> None:
    request = pb.GenerateRequest(prompt="a red apple", seed=7, images=3, steps=2)
    with grpc.insecure_channel(address(server)) as channel:
        response = ImagesStub(channel).GenerateBlocking(request)
    assert [(image.index, image.seed) for image in response.images] == [(0, 7), (1, 8), (2, 9)]
    for image in response.images:
        np.testing.assert_array_equal(decoded(image.data), alone(model, prompt="a red apple", seed=image.seed, steps=2))
    assert (response.queued.seed, response.queued.images, response.timings.steps) == (7, 3, 2)
    assert response.timings.denoise_ms > 0
