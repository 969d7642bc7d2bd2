"""A request to a wish: defaults filled in, every field checked."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from engines.model import Model
from pipeline.errors import InvalidRequest
from pipeline.samplers import SAMPLERS
from server.limits import Limits
from server.request import ImageRequest
from server.wish import Wish


def wish(model: Model, sizes: list[tuple[int, int]] | None = None, **fields) -> Wish:
    default = model.spec.defaults
    sizes = sizes or [(default.width, default.height)]
    return Wish.of(ImageRequest(**fields), model, sizes, Limits())


def test_an_empty_request_is_the_models_defaults(model: Model) -> None:
    made, default = wish(model), model.spec.defaults
    assert made.size == (default.width, default.height)
    assert (made.steps, made.guidance, made.sampler) == (default.steps, default.guidance, default.sampler)
    assert (made.images, made.format, made.preview_every, made.priority) == (1, "png", 0, 0)
    assert not made.prompt.cut and made.negative and not made.negative.cut


def test_a_drawn_seed_differs_from_request_to_request(model: Model) -> None:
    seeds = {wish(model).seed for _ in range(8)}
    assert len(seeds) == 8 and all(0 <= seed < 2**32 for seed in seeds)
    assert wish(model, seed=0).seed == 0


@pytest.mark.parametrize(("guidance", "rows"), [(0.0, 1), (1.0, 1), (1.0001, 2), (30.0, 2)])
def test_guidance_of_one_and_less_is_unguided(guidance: float, rows: int, model: Model) -> None:
    assert wish(model, guidance=guidance).rows(0) == rows


def test_a_default_size_that_is_not_served_gives_way_to_the_first_that_is(model: Model) -> None:
    assert wish(model, [(64, 32), (32, 64)]).size == (64, 32)


def test_words_that_do_not_fit_are_told(model: Model) -> None:
    long = "apple " * 40
    assert wish(model, prompt=long).prompt.cut
    told = wish(model, prompt="apple", negative_prompt=long)
    assert told.negative and told.negative.cut and not told.prompt.cut
    assert wish(model, negative_prompt=long, guidance=1.0).negative is None, "an unguided request has no use for it"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": "x" * 10**6}, "prompt has 1000000 characters; at most 4096 are taken"),
        ({"prompt": "a\0b"}, "prompt has a NUL character at position 1; text has none"),
        ({"negative_prompt": "x" * 4097}, "negative_prompt has 4097 characters; at most 4096 are taken"),
        ({"negative_prompt": "\0"}, "negative_prompt has a NUL character at position 0; text has none"),
        ({"steps": 0}, "steps is 0; it must be 1 to 150"),
        ({"steps": 10**9}, "steps is 1000000000; it must be 1 to 150"),
        ({"guidance": math.nan}, "guidance is nan; it must be 0 to 30"),
        ({"guidance": math.inf}, "guidance is inf; it must be 0 to 30"),
        ({"guidance": -1.0}, "guidance is -1; it must be 0 to 30"),
        ({"guidance": 31.0}, "guidance is 31; it must be 0 to 30"),
        ({"images": 0}, "images is 0; it must be 1 to 8"),
        ({"images": 9}, "images is 9; it must be 1 to 8"),
        ({"format": "bmp"}, "format is 'bmp'; it must be one of png, jpeg, webp"),
        ({"format": ""}, "format is ''; it must be one of png, jpeg, webp"),
        ({"width": 0}, "width x height is 0x24; the sizes served are 24x24"),
        ({"width": 25}, "width x height is 25x24; the sizes served are 24x24"),
        ({"height": 4096}, "width x height is 24x4096; the sizes served are 24x24"),
        ({"width": 2**32 - 1, "height": 1}, "width x height is 4294967295x1; the sizes served are 24x24"),
        ({"sampler": ""}, "sampler is ''; it must be one of " + ", ".join(SAMPLERS)),
        ({"sampler": "DDIM"}, "sampler is 'DDIM'; it must be one of " + ", ".join(SAMPLERS)),
        ({"mask": b"file"}, "mask needs a picture to begin with; init_image is missing"),
        ({"strength": 0.5}, "strength needs a picture to begin with; init_image is missing"),
        ({"fit": "pad"}, "fit needs a picture to begin with; init_image is missing"),
        ({"init_image": b"file", "fit": "stretch"}, "fit is 'stretch'; it must be one of crop, resize, pad"),
        ({"init_image": b"file", "strength": 1.01}, "strength is 1.01; it must be 0 to 1"),
        ({"init_image": b"file", "strength": 1e300}, "strength is 1e+300; it must be 0 to 1"),
        ({"init_image": b"file", "strength": math.nan}, "strength is nan; it must be 0 to 1"),
        (
            {"init_image": b"file", "strength": 0.0, "steps": 7},
            "strength is 0, which makes none of 7 steps; give 0.143 or more",
        ),
        ({"guidance_start": -0.1}, "guidance_start is -0.1; it must be 0 to 1"),
        ({"guidance_end": 2.0}, "guidance_end is 2; it must be 0 to 1"),
        (
            {"guidance_start": 0.5, "guidance_end": 0.5},
            "guidance_start is 0.5; it must be less than guidance_end, which is 0.5",
        ),
    ],
)
def test_what_is_outside_its_limits_names_field_value_and_limit(fields, told: str, model: Model) -> None:
    with pytest.raises(InvalidRequest) as refused:
        wish(model, **fields)
    assert str(refused.value) == told and refused.value.code == "INVALID_ARGUMENT"


def test_a_strength_is_what_the_client_wrote(model: Model) -> None:
    """0.7 as a float32 is less than 0.7, of which 10 steps would be 6."""
    for strength, steps in ((float(np.float32(0.7)), 7), (0.7, 7), (0.2, 2), (1.0, 10), (None, 8)):
        made = wish(model, init_image=b"file", strength=strength, steps=10)
        assert (made.steps, made.table.steps, made.table.whole) == (10, steps, steps == 10)


def test_rows_follow_the_interval(model: Model) -> None:
    made = wish(model, steps=10, sampler="ddim", guidance_start=float(np.float32(0.2)), guidance_end=0.4)
    assert [made.rows(reached) for reached in range(11)] == [1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 0]
    assert [made.rows_left(reached) for reached in (0, 3, 10)] == [12, 8, 0]
    unguided = wish(model, steps=10, sampler="ddim", guidance=1.0, guidance_end=0.4)
    assert unguided.rows_left() == 10


def test_an_inpainting_model_needs_a_mask(model: Model) -> None:
    spec = replace(model.spec, unet=replace(model.spec.unet, in_channels=7))
    inpainting = replace(model, checkpoint=replace(model.checkpoint, spec=spec))
    for fields in ({}, {"init_image": b"file"}):
        with pytest.raises(InvalidRequest, match="is an inpainting model; it needs init_image and mask"):
            wish(inpainting, **fields)
    assert wish(inpainting, init_image=b"file", mask=b"file").table.steps


def test_a_distilled_model_has_no_interval(model: Model) -> None:
    spec = replace(model.spec, unet=replace(model.spec.unet, guidance_width=32))
    distilled = replace(model, checkpoint=replace(model.checkpoint, spec=spec))
    with pytest.raises(InvalidRequest, match="takes its guidance in and is never unguided"):
        wish(distilled, guidance_end=0.5)


def test_more_steps_than_the_schedule_has_intervals_are_refused(model: Model) -> None:
    train_steps = model.spec.schedule.train_steps
    request = ImageRequest(steps=train_steps)
    with pytest.raises(InvalidRequest, match=f"steps is {train_steps}; it must be 1 to {train_steps - 1}"):
        Wish.of(request, model, [(24, 24)], Limits(steps=10_000))


@pytest.mark.parametrize(
    ("fields", "name", "told"),
    [
        ({"seed": -1}, "seed", "seed is -1; it must be 0 to 4294967295"),
        ({"seed": 2**32}, "seed", "seed is 4294967296; it must be 0 to 4294967295"),
        ({"seed": 10**400}, "seed", "seed is 1000"),
        ({"priority": 2**31}, "priority", "priority is 2147483648; it must be -2147483648 to 2147483647"),
        ({"preview_every": -1}, "preview_every", "preview_every is -1; it must be 0 to 4294967295"),
        ({"quality": 101, "format": "jpeg"}, "quality", "quality is 101; it must be 0 to 100"),
        ({"quality": 50}, "quality", "quality is 50; png has none, jpeg and webp have"),
        ({"width": 3}, "width", "width x height is 3x"),
        ({"format": "gif"}, "format", "format is 'gif'; it must be one of png, jpeg, webp"),
        ({"prompt": "(a:11)", "prompt_weights": True}, "prompt", "a weight of the prompt is 11; it must be -10 to 10"),
        ({"sampler": "lcm", "steps": 51}, "steps", "steps is 51; sampler lcm takes 1 to 50"),
    ],
)
def test_what_no_message_could_hold_is_refused_too_and_each_error_names_its_field(
    fields, name: str, told: str, model: Model
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        wish(model, **fields)
    assert refused.value.field == name and str(refused.value).startswith(told)
