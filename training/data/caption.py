"""Captions of scenes: how many of what, where, on which ground, in which style; one scene has several."""

from __future__ import annotations

import numpy as np

from training.data.scene import Scene

NUMBERS = {2: "two", 3: "three"}
RELATIONS = ("left of", "right of", "above", "below")
SMALL, TILTED = 0.56, 18.0  # below this size, and from these degrees on, a caption says so
PLACES = {
    (-1, -1): "at the top left", (0, -1): "at the top", (1, -1): "at the top right", (-1, 0): "at the left",
    (1, 0): "at the right", (-1, 1): "at the bottom left", (0, 1): "at the bottom", (1, 1): "at the bottom right",
}  # fmt: skip
_IRREGULAR = {"mouse": "mice", "foot": "feet", "tooth": "teeth", "leaf": "leaves", "wolf": "wolves", "loaf": "loaves",
              "knife": "knives", "scarf": "scarves", "shelf": "shelves", "goose": "geese", "man": "men",
              "woman": "women", "child": "children", "sheep": "sheep", "fish": "fish", "deer": "deer",
              "broccoli": "broccoli", "bread": "bread", "sushi": "sushi"}  # fmt: skip

_CUTS = ("of", "with", "on", "behind", "without", "and", "in", "showing")


def plural(name: str) -> str:
    """Return the plural of a name: of its last word, or of the one before `of`, `with` and their like."""
    words = name.split()
    cut = next((i for i, word in enumerate(words) if i and word in _CUTS), len(words))
    word = words[cut - 1]
    if word in _IRREGULAR:
        word = _IRREGULAR[word]
    elif word.endswith(("s", "x", "ch", "sh", "z")):
        # "glasses", "socks": many already; "bus", "box", "cactus": one
        word = word if word.endswith("s") and not word.endswith(("ss", "us", "is")) else f"{word}es"
    elif word.endswith("y") and word[-2:-1] not in "aeiou":
        word = f"{word[:-1]}ies"
    else:
        word = f"{word}s"
    return " ".join((*words[: cut - 1], word, *words[cut:]))


def one(name: str) -> str:
    """Return a name with its article, if it takes one."""
    last = name.split()[-1]
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        return name
    return f"{'an' if name[0] in 'aeio' or name.startswith('umb') else 'a'} {name}"


def subject(scene: Scene, random: np.random.Generator) -> str:
    """Return what is to be seen, without ground and style."""
    first = scene.items[0]
    if len(scene.items) == 1:
        return _single(scene, random)
    if all(item.thing == first.thing for item in scene.items):
        return f"{NUMBERS[len(scene.items)]} {plural(first.thing)}"
    second = scene.items[1]
    if random.random() < 0.25:
        return f"{one(first.thing)} and {one(second.thing)}"
    horizontal = abs(first.x - second.x) > abs(first.y - second.y)
    before = first.x < second.x if horizontal else first.y < second.y
    relation = RELATIONS[(0 if horizontal else 2) + (not before)]
    return f"{one(first.thing)} {relation} {one(second.thing)}"


def _single(scene: Scene, random: np.random.Generator) -> str:
    (item,) = scene.items
    adjectives = [word for word, holds in (("small", item.size < SMALL), ("tilted", abs(item.tilt) >= TILTED)) if holds]
    named = " ".join((*adjectives, item.thing))
    if random.random() < 0.45:
        named = one(named)
    place = PLACES.get((_third(item.x), _third(item.y)))
    if item.size < SMALL and place and random.random() < 0.7:
        named = f"{named} {place}"
    return named


def _third(position: float) -> int:
    return -1 if position < 0.4 else 1 if position > 0.6 else 0


def captions(scene: Scene, unstyled: float, random: np.random.Generator) -> tuple[str, str]:
    """Return a caption, which in the share `unstyled` names no style, and the same without one."""
    plain = subject(scene, random)
    if scene.ground != "white" or random.random() < 0.06:
        plain = f"{plain} on {scene.ground}"
    way = random.random()
    if random.random() < unstyled:
        return plain, plain
    if way < 0.7:
        return f"{plain}, {scene.style} style", plain
    return (f"{plain} in {scene.style} style" if way < 0.85 else f"{scene.style} style {plain}"), plain
