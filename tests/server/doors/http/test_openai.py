"""Where partial images stand, and bodies as OpenAI's."""

from __future__ import annotations

import openai
import pytest

from engines.model import Model
from server.doors.http.generation import Generation, image_request
from server.doors.http.openai import partial_steps
from tests.support.serving import http, serving


@pytest.mark.parametrize(
    ("steps", "partial", "after", "every"),
    [
        (25, 3, [6, 12, 18], 6),
        (12, 3, [3, 6, 9], 3),
        (8, 1, [4], 4),
        (7, 3, [2, 4, 5], 1),
        (5, 3, [1, 3, 4], 1),
        (4, 3, [1, 2, 3], 1),
        (2, 3, [1], 1),
        (1, 3, [], 1),
        (25, 0, [], 25),
    ],
)
def test_partial_images_are_spread_evenly(steps: int, partial: int, after: list[int], every: int) -> None:
    spread = partial_steps(steps, partial)
    assert (spread.steps, spread.every) == (after, every)


@pytest.mark.parametrize("partial", [1, 2, 3])
def test_each_is_a_step_that_has_a_preview(partial: int) -> None:
    for steps in range(1, 151):
        spread = partial_steps(steps, partial)
        assert all(step % spread.every == 0 and 0 < step < steps for step in spread.steps)
        assert len(spread.steps) == partial or steps < 2 * (partial + 1)


def test_what_was_not_said_is_none() -> None:
    request = image_request(Generation(prompt="a"))
    assert {name for name, value in vars(request).items() if value is not None} == {"prompt"}
    assert image_request(Generation(prompt="a", size="auto", output_compression=100)) == request
    assert image_request(Generation(prompt="a", output_compression=100, output_format="webp")).quality == 100


def test_a_path_that_there_is_not(model: Model) -> None:
    """It is the path that is missing, and no model."""
    with (
        serving(model, http_port=0) as server,
        openai.OpenAI(base_url=f"{http(server)}/v1", api_key="any", max_retries=0) as client,
        pytest.raises(openai.NotFoundError) as missing,
    ):
        client.post("/images/variations", cast_to=object, body={})
    assert missing.value.code == "unknown_url"
    assert "the path /v1/images/variations does not exist on this server" in missing.value.message


def test_a_misspelt_field_is_told_before_the_one_that_is_missing(model: Model) -> None:
    with (
        serving(model, http_port=0) as server,
        openai.OpenAI(base_url=f"{http(server)}/v1", api_key="any", max_retries=0) as client,
    ):
        for body, words in (
            ({"promt": "a"}, "there is no field 'promt'; did you mean prompt?"),
            ({"steps": 5}, "prompt is missing"),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                client.post("/images/generations", cast_to=object, body=body)
            assert words in refused.value.message
