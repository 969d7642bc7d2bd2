"""Pictures that begin with a picture against diffusers: img2img, inpainting over UNets of four and nine channels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engines.choice import Choice
from engines.commands.compare import psnr
from engines.generate import generate
from engines.model import Model, load
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.conditions.original import Original
from pipeline.samplers import SAMPLERS
from tests.support.checkpoints import INPAINTING, make_checkpoint
from tests.support.diffusers_originals import Begun, original_of
from tests.support.pairs import grid

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

EXACT = 45.0  # dB
ASKED: dict[str, Any] = {"prompt": "a red apple", "negative_prompt": "a blue cat", "seed": 3, "steps": 5}
STRENGTHS = [0.2, 0.55, 0.8, 1.0]
FOUR: dict[str, Any] = {"unet": {"in_channels": 4, "out_channels": 4}, "vae": {"latent_channels": 4}}
KINDS: dict[str, dict[str, Any]] = {"img2img": {}, "four": FOUR, "nine": INPAINTING}

Pair = tuple[Model, Begun]


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    @functools.cache
    def pair(kind: str) -> Pair:
        checkpoint = open_checkpoint(make_checkpoint(tmp_path_factory.mktemp(kind) / kind, **KINDS[kind]))
        return load(checkpoint, Choice("torch", "f32", 1, "cpu")), Begun(checkpoint)

    return pair


def sized(kind: str, width: int, height: int) -> dict[str, Any]:
    original = original_of(width, height, masked=kind != "img2img")
    return {"original": original, "width": width, "height": height}


def compared(pair: Pair, batch: int = 1, **asked: Any) -> float:
    """`batch` above 1: the last of so many pictures."""
    model, theirs = pair
    sides = {name: asked.pop(name) for name in ("width", "height")}
    ours = generate(model, **asked | sides | {"seed": asked["seed"] + batch - 1})
    wanted = theirs.generate(**asked, batch=batch)
    assert ours.std() > 20, "a flat picture would prove nothing"
    return psnr(ours, wanted)


# Each sampler once, and with it each pair of the other values.
CASES = [(list(KINDS)[i % 3], sampler, STRENGTHS[i % 4], (1.0, 4.0)[i // 2 % 2]) for i, sampler in enumerate(SAMPLERS)]


@pytest.mark.parametrize(("kind", "sampler", "strength", "guidance"), CASES)
def test_the_pictures_of_diffusers(
    pair_of: Callable[[str], Pair], kind: str, sampler: str, strength: float, guidance: float
) -> None:
    asked = {**ASKED, "sampler": sampler, "strength": strength, "guidance": guidance, **sized(kind, 24, 24)}
    assert compared(pair_of(kind), **asked) >= EXACT


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "sampler", "strength", "guidance"), grid(list(KINDS), list(SAMPLERS), STRENGTHS, [1.0, 4.0])
)
def test_all_the_pictures_of_diffusers(
    pair_of: Callable[[str], Pair], kind: str, sampler: str, strength: float, guidance: float
) -> None:
    test_the_pictures_of_diffusers(pair_of, kind, sampler, strength, guidance)


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_picture_that_is_not_square_and_not_the_first(pair_of: Callable[[str], Pair], kind: str) -> None:
    asked = {**ASKED, "sampler": "euler_a", "strength": 0.7, "guidance": 3.0, **sized(kind, 32, 20)}
    assert compared(pair_of(kind), batch=2, **asked) >= EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_anything_else_fails_the_same_comparison(pair_of: Callable[[str], Pair], kind: str) -> None:
    asked = {**ASKED, "sampler": "ddim", "strength": 0.6, "guidance": 3.0, **sized(kind, 24, 24)}
    model, theirs = pair_of(kind)
    wanted = theirs.generate(**{k: v for k, v in asked.items() if k not in ("width", "height")})
    original = asked["original"]
    wrongs: list[dict[str, Any]] = [
        {"strength": 0.8},
        {"seed": 4},
        {"original": original_of(24, 24, masked=kind != "img2img", seed=2)},
    ]
    if original.mask is not None:
        wrongs.append({"original": replace(original, mask=~original.mask)})
    assert psnr(generate(model, **asked), wanted) >= EXACT
    for wrong in wrongs:
        assert psnr(generate(model, **asked | wrong), wanted) < EXACT, wrong


@pytest.mark.parametrize("kind", ["four", "nine"])
def test_what_is_not_redrawn_is_the_original(pair_of: Callable[[str], Pair], kind: str) -> None:
    asked = {**ASKED, "sampler": "dpmpp_2m", "strength": 1.0, "guidance": 3.0, **sized(kind, 32, 24)}
    original: Original = asked["original"]
    assert original.mask is not None
    drawn = generate(pair_of(kind)[0], **asked)
    assert np.array_equal(drawn[~original.mask], original.pixels[~original.mask])
    assert (drawn != original.pixels)[original.mask].mean() > 0.9


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("kind", ["img2img", "nine"])
def test_every_backend_of_a_cpu(pair_of: Callable[[str], Pair], kind: str, backend: str) -> None:
    oracle, _ = pair_of(kind)
    model = load(oracle.checkpoint, Choice(backend, "f32"))
    asked = {**ASKED, "sampler": "dpmpp_2m", "strength": 0.7, "guidance": 3.0, **sized(kind, 32, 20)}
    assert psnr(generate(model, **asked), generate(oracle, **asked)) >= EXACT
