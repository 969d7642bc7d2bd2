"""One table, doors x pictures as conditions: each cell a test, compared with what gRPC answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from engines.model import Model
from server.app import Server
from tests.support.doors import DOORS, Door
from tests.support.serving import serving
from tests.support.uploads import colours, saved

every_door = pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)

ASKED = {"prompt": "a red apple", "seed": 7, "steps": 4, "guidance": 3.0, "sampler": "euler"}
PICTURE, STYLE = saved(colours()), saved(colours(20, 50), "jpeg")


def masked() -> bytes:
    mask = Image.new("L", (40, 30))
    mask.paste(255, (10, 5, 30, 20))
    return saved(mask)


@pytest.fixture(scope="module")
def whole(towers: Model) -> Iterator[Server]:
    """A server whose model has everything."""
    with serving(towers, seats=2, http_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def bare(model: Model) -> Iterator[Server]:
    """A server whose model has neither a style adapter nor a judge."""
    with serving(model, seats=2, http_port=0) as server:
        yield server


@pytest.mark.parametrize(
    "conditions",
    [
        {"init_image": PICTURE, "strength": 0.5, "fit": "crop"},
        {"init_image": PICTURE, "mask": masked(), "strength": 0.75, "fit": "pad"},
        {"style_image": STYLE, "style_weight": 0.5},
        {"init_image": PICTURE, "strength": 0.75, "fit": "resize", "style_image": STYLE},
        {"guidance_start": 0.25, "guidance_end": 0.75},
    ],
    ids=["init", "mask", "style", "both", "interval"],
)
@every_door
def test_the_same_picture_at_every_door(door: Door, conditions: dict[str, Any], whole: Server) -> None:
    outcome, other = door.ask(whole, **ASKED, **conditions), DOORS[0].ask(whole, **ASKED, **conditions)
    assert outcome.pictures == other.pictures and len(outcome.pictures) == 1, outcome.message
    assert outcome.pictures != door.ask(whole, **ASKED).pictures, "the comparison can fail"


@every_door
def test_those_that_are_kept_have_scores(door: Door, whole: Server) -> None:
    images, keep = (1, 1) if door.most else (4, 2)
    outcome = door.ask(whole, **ASKED, images=images, keep=keep)
    other = DOORS[0].ask(whole, **ASKED, images=images, keep=keep)
    assert len(outcome.pictures) == keep and outcome.pictures == other.pictures
    assert sorted(map(float, outcome.scores)) == pytest.approx(sorted(map(float, other.scores)))  # type: ignore[arg-type]
    assert len(outcome.scores) == keep and door.ask(whole, **ASKED).scores == []


@pytest.mark.parametrize(
    ("fields", "name", "told"),
    [
        ({"style_image": STYLE}, "style_image", "style_image: {} has no style adapter; the server's setting "),
        ({"style_weight": 0.5}, "style_weight", "style_weight needs a picture to take a style from; style_image "),
        ({"crop": "0x8"}, "crop", "crop: {} is told of no sizes, as SDXL's models are"),
        ({"keep": 1}, "keep", "keep: {} has no judge; the server's setting --judge names one"),
        ({"guidance_end": 1.5}, "guidance_end", "guidance_end is 1.5; it must be 0 to 1"),
        ({"init_image": b"GIF89a"}, "init_image", "init_image is none of PNG, JPEG and WebP, by its first bytes"),
        ({"init_image": PICTURE, "strength": 1.5}, "strength", "strength is 1.5; it must be 0 to 1"),
        ({"init_image": PICTURE, "mask": saved(colours(8, 8))}, "mask", "mask has 8x8 pixels, init_image 40x30; "),
    ],
)
@every_door
def test_what_is_refused(door: Door, fields: dict[str, Any], name: str, told: str, bare: Server) -> None:
    outcome = door.ask(bare, **fields)
    told, theirs = told.format(bare.service.model_id), {"init_image": "init_images", **door.names}
    if door.label in ("openai", "a1111"):
        told = told.replace(f"{name} is", f"{theirs.get(name, name)} is")
        told = told.replace("init_image ", f"{theirs['init_image']} ")  # another field, named beside its own
    assert (outcome.code, outcome.pictures) == ("INVALID_ARGUMENT", [])
    assert outcome.message.startswith(told)
    if outcome.field is not None:
        assert outcome.field == door.names.get(name, name)
