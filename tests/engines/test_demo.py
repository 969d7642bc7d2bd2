"""The embedded model draws what it is asked for, in the style that is named or shown, with nothing to trace first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines import graphs
from engines.choice import Choice
from engines.cpu.torch import TorchBackend
from engines.generate import generate
from engines.model import Model, load
from pipeline.arrays import Pixels
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.tokenizer import ClipTokenizer

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo/small-things"


def never(*_: object) -> None:
    pytest.fail("a graph was traced")


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "run_export", never)
        patch.setattr(graphs, "check_extra", never)
        yield load(open_checkpoint(DEMO), Choice("openvino", "f32", threads=2))


def psnr(one: Pixels, other: Pixels) -> float:
    error = np.square(one.astype(float) - other.astype(float)).mean()
    return 10 * math.log10(255**2 / max(error, 1e-9))


def colour(picture: Pixels) -> float:
    """Return how far the three numbers of a pixel are apart, in the mean."""
    return float(np.ptp(picture.astype(int), axis=2).mean())


def test_its_judge_finds_what_was_asked_for_among_the_listed(model: Model) -> None:
    lines = (ROOT / "training/evaluate/listed.txt").read_text(encoding="utf-8").splitlines()
    asked = [f"{line} style" for line in lines if not line.startswith("#")]
    assert model.judge is not None and len(asked) == 100
    texts = [model.judge.text(prompt) for prompt in asked]
    for place in range(0, 100, 9):
        drawn = generate(model, asked[place], seed=place)
        (scores,) = model.judge.scores([model.judge.picture(drawn)], texts)
        assert asked[int(scores.argmax())] == asked[place]


def test_a_seed_changes_the_picture_and_not_what_is_on_it(model: Model) -> None:
    assert model.judge is not None
    prompt, others = "evergreen tree, color style", ["palm tree, color style", "cactus, color style", "fox, ink style"]
    texts = [model.judge.text(text) for text in (prompt, *others)]
    drawn = [generate(model, prompt, seed=seed) for seed in range(4)]
    assert all(scores.argmax() == 0 for scores in model.judge.scores([model.judge.picture(p) for p in drawn], texts))
    apart = [psnr(one, other) for i, one in enumerate(drawn) for other in drawn[:i]]
    assert max(apart) < 25 and sum(apart) / len(apart) < 20


def test_a_style_comes_from_a_picture(model: Model) -> None:
    assert model.styles is not None
    shown = {style: generate(model, f"castle, {style} style", seed=1) for style in ("color", "ink")}
    assert colour(shown["ink"]) < 5 < 15 < colour(shown["color"])
    for thing in ("owl", "guitar", "snail"):
        ink, color = (
            generate(model, thing, seed=2, style=model.styles.of(shown[style], 1.0)) for style in ("ink", "color")
        )
        assert colour(ink) < colour(color) / 3


def test_diffusers_draws_the_same_picture() -> None:
    from tests.support.diffusers_pipeline import Diffusers

    demo = open_checkpoint(DEMO)
    model = Model(demo, ClipTokenizer(demo.source, demo.spec.text), TorchBackend(demo, threads=2))
    options = {"seed": 3, "steps": 8, "guidance": 3.0, "sampler": "dpmpp_2m"}
    theirs = Diffusers(demo).generate("owl, color style", "", **options)
    assert psnr(generate(model, "owl, color style", **options), theirs) >= 45
