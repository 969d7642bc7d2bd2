"""The prompts that are fixed before a model is trained: those of the demo model name what training shows it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from demo.__main__ import PROMPTS
from training.data.drawn import DrawnPictures
from training.data.fonts import listed_things
from training.data.shapes import SHAPES
from training.evaluate.prompts import held, listed, singles
from training.recipe import read_recipe

RECIPE = read_recipe(Path(__file__).parents[3] / "training/recipes/small-things.yaml")


@pytest.fixture(scope="module")
def pictures() -> DrawnPictures:
    """Those of the demo model, none of which can be drawn: its things and pairs."""
    return DrawnPictures({}, listed_things(), RECIPE.data, RECIPE.seed)


def test_a_hundred_are_listed_by_their_names(pictures: DrawnPictures) -> None:
    prompts = listed(pictures)
    assert Counter(prompt.wanted.style for prompt in prompts) == {"color": 50, "ink": 50}
    assert len({prompt.text for prompt in prompts}) == 100 and prompts[0].text == "red apple, color style"
    assert not {prompt.text for prompt in prompts} & {prompt.text for prompt in held(pictures)}
    assert listed(DrawnPictures({}, SHAPES, RECIPE.data, RECIPE.seed)) == []


def test_what_the_demo_asks_for_is_what_training_shows(pictures: DrawnPictures) -> None:
    """Not all things are shown in both styles: an octopus is shown in ink alone."""
    shown = {f"{thing}, {style} style" for thing, style in pictures.pairs}
    assert "octopus, ink style" in shown and "octopus, color style" not in shown
    simple = [prompt for prompt in RECIPE.evaluate.sheet if " on " not in prompt and " of " not in prompt]
    simple = [prompt for prompt in simple if not prompt.startswith("a ")]
    assert len(simple) == 16 and set(simple) <= shown and set(PROMPTS) <= shown


def test_single_things_are_of_every_style_and_none_is_held_out(pictures: DrawnPictures) -> None:
    prompts = singles(pictures, 200)
    assert Counter(prompt.wanted.style for prompt in prompts) == {"color": 100, "ink": 100}
    assert len({prompt.text for prompt in prompts}) == 200
    assert not {prompt.text for prompt in prompts} & {prompt.text for prompt in held(pictures)}
