"""SDXL's size numbers through gRPC: what is drawn is generate's picture, in any company; limits; who has none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from engines.choice import Choice
from engines.generate import generate
from engines.model import Model, load
from latentd import AsyncClient, Client, ServerError
from pipeline.arrays import Pixels
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.conditions.sizes import AS_IT_IS, Sizes
from server.app import Server
from tests.support.sdxl import make_sdxl
from tests.support.serving import address, serving

ASKED = {"prompt": "the red apple!", "seed": 7, "steps": 3, "guidance": 3.0}


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = make_sdxl(tmp_path_factory.mktemp("served") / "sdxl")
    return load(open_checkpoint(folder), Choice("openvino", "f32", threads=2))


@pytest.fixture(scope="module")
def served(xl: Model) -> Iterator[Server]:
    with serving(xl, seats=3) as server:
        yield server


def test_pictures_that_differ_in_text_and_sizes_share_steps(xl: Model, served: Server) -> None:
    asked = [
        ({}, {}),
        (
            {"original_size": "32x48", "crop": "8x0", "target_size": "64x32"},
            {"sizes": Sizes((32, 48), (8, 0), (64, 32))},
        ),
        ({"negative_prompt": "dog", "clip_skip": 1}, {"negative_prompt": "dog", "clip_skip": 1}),
        ({"guidance": 1.0, "crop": "0x16"}, {"guidance": 1.0, "sizes": Sizes(crop=(0, 16))}),
    ]

    async def together() -> list[Pixels]:
        async with AsyncClient(address(served)) as client:
            got = await asyncio.gather(*(client.generate(**{**ASKED, **said}) for said, _ in asked))  # type: ignore[arg-type]
            return [np.asarray(picture.image) for (picture,) in got]

    pictures = asyncio.run(together())
    wanted = [generate(xl, **{"sizes": AS_IT_IS, **ASKED, **options}) for _, options in asked]  # type: ignore[arg-type]
    assert len({picture.tobytes() for picture in wanted}) == len(asked)
    for got, want in zip(pictures, wanted, strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"original_size": "64"}, "original_size is '64'; it takes WIDTHxHEIGHT, each 1 to 16384"),
        ({"original_size": "0x64"}, "original_size is '0x64'"),
        ({"target_size": "64x16385"}, "target_size is '64x16385'"),
        ({"crop": "-1x0"}, "crop is '-1x0'; it takes LEFTxTOP, each 0 to 16384"),
        ({"crop": "٣x1"}, "crop is '٣x1'"),
        ({"crop": "1x1\n"}, "crop is"),
    ],
)
def test_what_is_no_size_is_refused(served: Server, said: dict[str, str], words: str) -> None:
    with Client(address(served)) as client, pytest.raises(ServerError) as caught:
        client.generate(**{**ASKED, **said})  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_the_model_says_that_it_takes_them(served: Server) -> None:
    with Client(address(served)) as client:
        assert "sizes" in client.models()[0].features


def test_another_model_takes_none(model: Model) -> None:
    with serving(model, seats=1) as server, Client(address(server)) as client:
        assert "sizes" not in client.models()[0].features
        with pytest.raises(ServerError, match="original_size: .* is told of no sizes, as SDXL's models are"):
            client.generate("a cat", original_size="64x64")
