"""Drawn pictures: scenes chosen afresh for every place in the data: a seed changes a picture, and words compose."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

import numpy as np

from training.data.caption import NUMBERS, PLACES, RELATIONS, SMALL, captions, one, plural
from training.data.sample import Sample
from training.data.scene import GROUNDS, JITTER, Glyphs, Item, Scene, draw
from training.data.styles import BASES
from training.draws import numbers, permuted
from training.errors import TrainingError
from training.recipe import DataRecipe

_UNUSUAL = 0.06  # of scenes of one thing: the share that is small, and the share that is tilted
# What learns to draw is shown things that keep their place in the share `settled`; judges and copies are not. With
# places, sizes and tilts as free as `_single` has them, 300,000 pictures of 400 things taught colours and outlines.
_DRAWING = ("bank", "denoiser", "adapter")
_HELD = "held out"  # the purpose that no phase has
Pair = tuple[str, str]  # a thing and a style


class DrawnPictures:
    def __init__(self, glyphs: Glyphs, things: Sequence[str], recipe: DataRecipe, seed: int) -> None:
        """Split the pairs. Errors: TrainingError for a style that nobody can draw, or too few things."""
        for style in recipe.styles:
            if style not in BASES:
                raise TrainingError(f"data.styles has {style!r:.60}; there are: {', '.join(BASES)}")
        if len(things) < 4 or not recipe.styles:
            raise TrainingError(f"there are {len(things)} things and {len(recipe.styles)} styles; it takes 4 and 1")
        self.side, self.things, self.styles = recipe.side, tuple(things), recipe.styles
        self.count: int | None = None
        self._glyphs, self._recipe, self._seed = glyphs, recipe, seed
        self.held_pairs = held_pairs(self.things, self.styles, recipe.held_pairs)
        every = [(thing, style) for thing in self.things for style in self.styles]
        self.pairs = [pair for pair in every if pair not in self.held_pairs]
        self._of_style = {style: [t for t, s in self.pairs if s == style] for style in self.styles}

    @property
    def summary(self) -> str:
        return f"{len(self.things)} things in {len(self.styles)} styles"

    @property
    def digest(self) -> str:
        seal = hashlib.sha256("\0".join(self.things).encode())
        for name, glyph in sorted(self._glyphs.items(), key=lambda one: one[0]):
            seal.update("\0".join(name).encode() + glyph.levels[0].tobytes())
        return seal.hexdigest()[:16]

    def texts(self) -> list[str]:
        named = [text for thing in self.things for text in (one(thing), one(f"small {thing}"), plural(thing))]
        places = [*PLACES.values(), *RELATIONS, *NUMBERS.values(), "small tilted and on in style"]
        return [*named, *GROUNDS, *self.styles, *places]

    def sample(self, purpose: str, index: int) -> Sample:
        thing, style = self.pairs[permuted(self._seed, purpose, index, len(self.pairs))]
        return self._drawn(purpose, index, thing, style)

    def held(self, purpose: str, index: int) -> Sample:
        """Return one of another seed's, of a pair that training sees: the pictures are new, and their words are not."""
        return self.sample(f"{_HELD} {purpose}", index)

    def companion(self, purpose: str, index: int) -> Sample:
        style = self.pairs[permuted(self._seed, purpose, index, len(self.pairs))][1]
        random = numbers(self._seed, f"{purpose} companion", index)
        thing = self._of_style[style][random.integers(len(self._of_style[style]))]
        return self._drawn(f"{purpose} companion", index, thing, style)

    def single(self, purpose: str, index: int, thing: str, style: str) -> Sample:
        """Return a picture of one thing alone, whether training sees the pair or not."""
        random = numbers(self._seed, purpose, index)
        return self._sample(_single(random, thing, style, 0.0, 1.0), random)

    def _drawn(self, purpose: str, index: int, thing: str, style: str) -> Sample:
        random, recipe = numbers(self._seed, purpose, index), self._recipe
        if random.random() < recipe.composed:
            others = [t for t in self._of_style[style] if t != thing]
            scene = _composed(random, thing, others[random.integers(len(others))], style, recipe.plain)
        elif purpose.split()[0] in _DRAWING and random.random() < recipe.settled:
            scene = _settled(random, thing, style, recipe.plain)
        else:
            scene = _single(random, thing, style, _UNUSUAL, recipe.plain)
        return self._sample(scene, random)

    def _sample(self, scene: Scene, random: np.random.Generator) -> Sample:
        caption, plain = captions(scene, self._recipe.unstyled, random)
        things = tuple(dict.fromkeys(item.thing for item in scene.items))
        return Sample(draw(scene, self._glyphs, self.side), caption, plain, things, scene.style, scene.ground)


def held_pairs(things: Sequence[str], styles: Sequence[str], share: float) -> set[Pair]:
    """Return the pairs that training never sees: of few things one style each, chosen by their names alone."""
    if len(styles) < 2:
        return set()
    ranked = sorted(things, key=lambda thing: zlib.crc32(f"held {thing}".encode()))
    chosen = ranked[: round(share * len(things) * len(styles))] if share else []
    return {(thing, styles[i % len(styles)]) for i, thing in enumerate(chosen)}


def _ground(random: np.random.Generator, plain: float) -> tuple[str, tuple[int, int, int]]:
    if random.random() < plain:
        return "white", GROUNDS["white"]
    name = list(GROUNDS)[1 + random.integers(len(GROUNDS) - 1)]
    red, green, blue = (int(v) for v in np.clip(GROUNDS[name] + random.integers(-JITTER, JITTER + 1, 3), 0, 255))
    return name, (red, green, blue)


def _settled(random: np.random.Generator, thing: str, style: str, plain: float) -> Scene:
    """Choose a scene of one thing that fills the picture; it moves by a pixel or two of 64."""
    x, y = 0.5 + random.uniform(-0.02, 0.02, 2)
    ground, shade = _ground(random, plain)
    return Scene((Item(thing, x, y, random.uniform(0.9, 0.96), random.uniform(-2, 2)),), style, ground, shade)


def _single(random: np.random.Generator, thing: str, style: str, unusual: float, plain: float) -> Scene:
    """Choose a scene of one thing; in the share `unusual` it is small, and as often tilted."""
    size, tilt = random.uniform(0.78, 0.97), random.uniform(-8, 8)
    kind = random.random()
    if kind < unusual:
        size = random.uniform(0.4, SMALL - 0.02)
    elif kind < 2 * unusual:
        size, tilt = random.uniform(0.66, 0.8), random.choice((-1, 1)) * random.uniform(20, 40)
    slack = max(0.0, 1 - size) / 2
    x, y = 0.5 + random.uniform(-slack, slack), 0.5 + random.uniform(-slack, slack)
    ground, shade = _ground(random, plain)
    return Scene((Item(thing, x, y, size, tilt),), style, ground, shade)


def _composed(random: np.random.Generator, thing: str, other: str, style: str, plain: float) -> Scene:
    """Choose a scene of two or three of one thing, or of two different ones."""
    count = 3 if random.random() < 0.17 else 2
    different = count == 2 and random.random() < 0.7
    horizontal = random.random() < 0.5
    items = []
    for i in range(count):
        size = random.uniform(0.46, 0.52) if count == 2 else random.uniform(0.4, 0.46)
        if count == 3:  # one above, two below, or the other way round
            along, across = ((0.5, 0.25), (0.25, 0.74), (0.75, 0.74))[i]
            across = across if horizontal else 1 - across
        else:
            along, across = (0.26, 0.74)[i], 0.5 + random.uniform(-0.2, 0.2)
        jitter = random.uniform(-0.02, 0.02, 2)
        x, y = (along, across) if horizontal or count == 3 else (across, along)
        name = other if i and different else thing
        items.append(Item(name, x + jitter[0], y + jitter[1], size, random.uniform(-9, 9)))
    if different and random.random() < 0.5:
        items.reverse()
    ground, shade = _ground(random, plain)
    return Scene(tuple(items), style, ground, shade)
