"""The fixed prompts that a model of drawn things is judged by: functions of the things alone, not of a run's seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.data.caption import RELATIONS, one
from training.data.drawn import DrawnPictures
from training.data.scene import GROUNDS
from training.draws import numbers
from training.evaluate.verdict import Wanted

_SEED = 20261129  # of the choice
_LISTED = Path(__file__).with_name("listed.txt")


@dataclass(frozen=True)
class Prompt:
    text: str
    wanted: Wanted


def single(thing: str, style: str) -> Prompt:
    return Prompt(f"{thing}, {style} style", Wanted((thing,), style))


def singles(pictures: DrawnPictures, count: int) -> list[Prompt]:
    """Choose prompts of one thing, as many in each style, of pairs that training sees."""
    order, chosen = numbers(_SEED, "singles", 0).permutation(len(pictures.pairs)), []
    for k, style in enumerate(pictures.styles):
        share = count // len(pictures.styles) + (k < count % len(pictures.styles))
        seen = [pictures.pairs[i][0] for i in order if pictures.pairs[i][1] == style]
        chosen += [single(thing, style) for thing in seen[:share]]
    return chosen


def listed(pictures: DrawnPictures) -> list[Prompt]:
    """List the prompts of listed.txt, a hundred by their names; of other things than the demo model's none."""
    lines = [line for line in _LISTED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pairs = [(thing, style) for thing, _, style in (line.rpartition(", ") for line in lines)]
    return [single(*pair) for pair in pairs] if set(pairs) <= set(pictures.pairs) else []


def held(pictures: DrawnPictures) -> list[Prompt]:
    """List every pair that training never sees."""
    return [single(thing, style) for thing, style in sorted(pictures.held_pairs)]


def composed(pictures: DrawnPictures, count: int) -> list[Prompt]:
    """Choose prompts of two different things on a ground."""
    prompts, grounds = [], [name for name in GROUNDS if name != "white"]
    for i in range(count):
        random = numbers(_SEED, "composed", i)
        style = pictures.styles[i % len(pictures.styles)]
        things = [thing for thing, s in pictures.pairs if s == style]
        first, second = (things[k] for k in random.choice(len(things), 2, replace=False))
        ground = grounds[random.integers(len(grounds))]
        relation = RELATIONS[random.integers(len(RELATIONS))]
        text = f"{one(first)} {relation} {one(second)} on {ground}, {style} style"
        prompts.append(Prompt(text, Wanted((first, second), style, ground)))
    return prompts
