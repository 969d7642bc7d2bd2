"""Drawn pictures: the same place gives the same picture, and a caption says what is there."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from training.data.caption import captions, one, plural
from training.data.drawn import DrawnPictures, held_pairs
from training.data.scene import GROUNDS, Item, Scene, draw
from training.data.shapes import SHAPES, shape_glyphs
from training.data.styles import BASES, styled
from training.errors import TrainingError
from training.evaluate.verdict import ground_of
from training.recipe import DataRecipe

GLYPHS = shape_glyphs()
RECIPE = DataRecipe(kind="shapes", side=32, held_pairs=0.15, composed=0.4)


@pytest.fixture(scope="module")
def pictures() -> DrawnPictures:
    return DrawnPictures(GLYPHS, SHAPES, RECIPE, seed=5)


def test_a_place_has_one_picture_and_purposes_and_seeds_have_others(pictures: DrawnPictures) -> None:
    again = DrawnPictures(GLYPHS, SHAPES, RECIPE, seed=5).sample("denoiser", 1234)
    first = pictures.sample("denoiser", 1234)
    assert np.array_equal(first.pixels, again.pixels) and first.caption == again.caption
    others = [pictures.sample("autoencoder", 1234), pictures.held("denoiser", 1234)]
    others.append(DrawnPictures(GLYPHS, SHAPES, RECIPE, seed=6).sample("denoiser", 1234))
    assert not any(np.array_equal(first.pixels, other.pixels) for other in others)


def test_every_pair_comes_once_a_pass_but_those_held_out(pictures: DrawnPictures) -> None:
    single = DrawnPictures(GLYPHS, SHAPES, dataclasses.replace(RECIPE, composed=0), seed=5)
    count = len(single.pairs)
    assert count == 2 * len(SHAPES) - len(single.held_pairs) and single.held_pairs
    for begin in (0, count):
        samples = [single.sample("a", i) for i in range(begin, begin + count)]
        assert Counter((s.things[0], s.style) for s in samples) == Counter(single.pairs)
    assert all(
        (s.things[0], s.style) not in pictures.held_pairs for s in (pictures.companion("a", i) for i in range(60))
    )
    for i in range(200):
        sample = pictures.sample("b", i)
        assert not {(thing, sample.style) for thing in sample.things} & pictures.held_pairs


def test_what_learns_to_draw_is_shown_things_that_keep_their_place() -> None:
    """Whatever else learns from pictures, a bank's among what draws, is shown what it was without `settled`."""
    recipe = dataclasses.replace(RECIPE, composed=0, plain=1)
    free, settled = (
        DrawnPictures(GLYPHS, SHAPES, dataclasses.replace(recipe, settled=share), seed=5) for share in (0, 1)
    )

    def sides(pictures: DrawnPictures, purpose: str) -> set[int]:
        """How long the longer side of what is drawn is, in pixels, over many pictures."""
        drawn = (pictures.sample(purpose, i).pixels.min(axis=2) < 200 for i in range(60))
        return {max(int(np.ptp(np.flatnonzero(each.any(axis=axis)))) for axis in (0, 1)) for each in drawn}

    for purpose in ("denoiser", "bank", "adapter companion"):
        assert max(sides(settled, purpose)) - min(sides(settled, purpose)) <= 5 < np.ptp([*sides(free, purpose)])
    for purpose in ("autoencoder", "classifier", "evaluation"):
        pairs = ((each.sample(purpose, i).pixels for each in (free, settled)) for i in range(60))
        assert all(np.array_equal(*pair) for pair in pairs)


def test_held_pairs_do_not_depend_on_the_order_of_things() -> None:
    names = [f"thing {i}" for i in range(50)]
    first, second = held_pairs(names, ("color", "ink"), 0.05), held_pairs(names[::-1], ("color", "ink"), 0.05)
    assert first == second and len(first) == 5 and len({thing for thing, _ in first}) == 5


def test_captions_name_what_is_there(pictures: DrawnPictures) -> None:
    for i in range(300):
        sample = pictures.sample("captions", i)
        words = sample.caption.replace(",", "").split()
        for thing in sample.things:
            assert thing in sample.caption or plural(thing) in sample.caption
        assert sample.ground == "white" or sample.ground in words
        assert sample.style in words or sample.caption == sample.unstyled
        assert "style" not in sample.unstyled
    share = np.mean(
        [pictures.sample("captions", i).caption == pictures.sample("captions", i).unstyled for i in range(300)]
    )
    assert 0.02 < share < 0.16


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ((Item("disc", 0.25, 0.5, 0.4), Item("moon", 0.75, 0.5, 0.4)), "a disc left of a moon"),
        ((Item("disc", 0.75, 0.5, 0.4), Item("moon", 0.25, 0.5, 0.4)), "a disc right of a moon"),
        ((Item("disc", 0.5, 0.2, 0.4), Item("moon", 0.5, 0.8, 0.4)), "a disc above a moon"),
        ((Item("disc", 0.5, 0.8, 0.4), Item("moon", 0.5, 0.2, 0.4)), "a disc below a moon"),
        ((Item("cross", 0.2, 0.2, 0.4),) * 3, "three crosses"),
        ((Item("disc", 0.25, 0.8, 0.45),), "small disc at the bottom left"),
        ((Item("disc", 0.5, 0.5, 0.7, 30),), "tilted disc"),
    ],
)
def test_words_say_where(items: tuple[Item, ...], words: str) -> None:
    said = Counter(captions(Scene(items, "ink"), 0.0, np.random.default_rng(i))[1] for i in range(40))
    assert any(words in caption for caption in said), said


def test_names_are_inflected() -> None:
    names = ["red apple", "ear of corn", "bus", "cherry", "knife", "glasses", "glass of milk", "box", "mouse", "key"]
    want = ["red apples", "ears of corn", "buses", "cherries", "knives", "glasses", "glasses of milk", "boxes", "mice",
            "keys"]  # fmt: skip
    assert [plural(name) for name in names] == want
    assert [one(name) for name in ("octopus", "apple", "glasses", "bus", "unicorn", "umbrella")] == [
        "an octopus", "an apple", "glasses", "a bus", "a unicorn", "an umbrella",
    ]  # fmt: skip


def test_things_are_where_the_scene_says() -> None:
    for x, y in ((0.25, 0.25), (0.75, 0.25), (0.3, 0.7)):
        picture = draw(Scene((Item("disc", x, y, 0.3),), "color"), GLYPHS, 64)
        seen = np.argwhere((picture != 255).any(axis=2))
        assert np.allclose(seen.mean(axis=0) / 64, (y, x), atol=0.02)
        assert np.allclose(np.ptp(seen, axis=0) / 64, 0.3, atol=0.05)


def test_a_tilt_turns_against_the_clock() -> None:
    upright = draw(Scene((Item("triangle", 0.5, 0.5, 0.6),), "color"), GLYPHS, 64)
    turned = draw(Scene((Item("triangle", 0.5, 0.5, 0.6, 90),), "color"), GLYPHS, 64)
    difference = np.abs(np.rot90(upright).astype(int) - turned.astype(int))
    assert difference.mean() < 4 < np.abs(upright.astype(int) - turned.astype(int)).mean()


def test_ink_on_black_is_white() -> None:
    picture = draw(Scene((Item("ring", 0.5, 0.5, 0.8),), "ink", "black", GROUNDS["black"]), GLYPHS, 64)
    assert picture.max() > 200 and ground_of(_unit(picture)) == "black"


def _unit(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32)) / 127.5 - 1


@pytest.mark.parametrize("style", BASES)
def test_styles_are_functions_of_the_picture(style: str) -> None:
    picture = draw(Scene((Item("star", 0.5, 0.5, 0.9),), style), GLYPHS, 32)
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    plain = draw(Scene((Item("star", 0.5, 0.5, 0.9),), BASES[style]), GLYPHS, 32)
    assert np.array_equal(picture, styled(plain, style))
    assert (style in ("color", "ink")) == np.array_equal(picture, plain)


def test_a_style_that_nobody_draws_is_named() -> None:
    with pytest.raises(TrainingError, match=r"data.styles has 'oil'; there are: color, ink, mosaic, night, outline"):
        DrawnPictures(GLYPHS, SHAPES, dataclasses.replace(RECIPE, styles=("oil",)), seed=0)
