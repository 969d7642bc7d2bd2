"""Whole pictures against diffusers: the same prompt, seed, steps, guidance and sampler give the same pixels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines.choice import Choice
from engines.commands.compare import psnr
from engines.cpu.core import has_bf16
from engines.generate import generate
from engines.model import Model, load
from pipeline.checkpoint.opened import Checkpoint
from tests.support.diffusers_pipeline import Diffusers
from tests.support.pairs import grid

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

SAMPLERS = ["ddim", "euler", "dpmpp_2m"]
PREDICTIONS = ["epsilon", "velocity"]
EXACT, HALF = 45.0, 30.0  # dB; measured 77 and more in f32, 39 and more in bf16
ASKED: dict[str, Any] = {"prompt": "a red apple", "negative_prompt": "a blue cat", "seed": 3, "steps": 10}


@dataclasses.dataclass(frozen=True)
class Pair:
    checkpoint: Checkpoint
    theirs: Diffusers
    load: Callable[[str, str], Model]


@pytest.fixture(scope="module")
def pair_of(checkpoint: Checkpoint, v_checkpoint: Checkpoint) -> Callable[[str], Pair]:
    """Of a key of PREDICTIONS; each is made once."""
    checkpoints = dict(zip(PREDICTIONS, (checkpoint, v_checkpoint), strict=True))

    def pair(prediction: str) -> Pair:
        checkpoint = checkpoints[prediction]

        @functools.cache
        def loaded(backend: str, precision: str) -> Model:
            # One thread for torch, which it sets for the whole process.
            return load(checkpoint, Choice(backend, precision, 1 if backend == "torch" else None))

        return Pair(checkpoint, Diffusers(checkpoint), loaded)

    return functools.cache(pair)


@pytest.fixture(params=PREDICTIONS)
def pair(request: pytest.FixtureRequest, pair_of: Callable[[str], Pair]) -> Pair:
    return pair_of(request.param)


@pytest.mark.parametrize(
    ("prediction", "backend", "sampler", "guidance"),
    grid(PREDICTIONS, ["torch", "openvino", "onnxruntime"], SAMPLERS, [1.0, 3.0, 7.0]),
)
def test_the_pictures_of_diffusers(
    pair_of: Callable[[str], Pair], prediction: str, backend: str, sampler: str, guidance: float
) -> None:
    pair, asked = pair_of(prediction), {**ASKED, "sampler": sampler, "guidance": guidance}
    assert psnr(generate(pair.load(backend, "f32"), **asked), pair.theirs.generate(**asked)) >= EXACT


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_half_precision_is_near(pair: Pair, sampler: str) -> None:
    if not has_bf16():
        pytest.skip("this CPU has no bf16 instructions")
    asked = {**ASKED, "sampler": sampler, "guidance": 5.0}
    got, wanted = generate(pair.load("openvino", "bf16"), **asked), pair.theirs.generate(**asked)
    assert psnr(got, wanted) >= HALF
    assert not np.array_equal(got, generate(pair.load("openvino", "f32"), **asked)), "it was f32 after all"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_anything_else_fails_the_same_comparison(pair: Pair, sampler: str) -> None:
    asked = {**ASKED, "sampler": sampler, "guidance": 5.0}
    wanted = pair.theirs.generate(**asked)
    model = pair.load("openvino", "f32")
    # Not DDIM beside Euler: they are one equation, and differ in where the last step ends.
    other = "ddim" if sampler == "dpmpp_2m" else "dpmpp_2m"
    for wrong in (
        {"seed": 4},
        {"guidance": 5.5},
        {"guidance": 1.0},
        {"sampler": other},
        {"steps": 11},
        {"prompt": "a red cat"},
        {"negative_prompt": "a blue apple"},
    ):
        assert psnr(generate(model, **asked | wrong), wanted) < EXACT, wrong


def test_other_sizes_than_the_models_own(pair: Pair) -> None:
    default = pair.checkpoint.spec.defaults
    size = {"width": default.width + 8, "height": default.height - 8}  # diffusers takes multiples of 8 alone
    asked = {**ASKED, "sampler": "euler", "guidance": 4.0, **size}
    wanted = pair.theirs.generate(**asked)
    for backend in ("torch", "openvino"):
        got = generate(pair.load(backend, "f32"), **asked)
        assert got.shape == (asked["height"], asked["width"], 3)
        assert psnr(got, wanted) >= EXACT


@pytest.mark.parametrize(("prediction", "sampler", "steps"), grid(PREDICTIONS, SAMPLERS, [1, 2, 25]))
def test_few_steps_and_many(pair_of: Callable[[str], Pair], prediction: str, sampler: str, steps: int) -> None:
    pair = pair_of(prediction)
    asked = {**ASKED, "sampler": sampler, "guidance": 3.0, "steps": steps}
    assert psnr(generate(pair.load("openvino", "f32"), **asked), pair.theirs.generate(**asked)) >= EXACT


def test_a_prompt_longer_than_the_encoder(pair: Pair) -> None:
    asked = {**ASKED, "prompt": "a photo of the blue cat " * 9, "sampler": "ddim", "guidance": 3.0}
    assert psnr(generate(pair.load("openvino", "f32"), **asked), pair.theirs.generate(**asked)) >= EXACT


def test_what_is_absent_is_the_models_default(model: Model) -> None:
    default = model.spec.defaults
    got = generate(model, "a red apple")
    wanted = generate(
        model,
        "a red apple",
        "",
        seed=0,
        steps=default.steps,
        guidance=default.guidance,
        sampler=default.sampler,
        width=default.width,
        height=default.height,
    )
    assert got.dtype == np.uint8 and np.array_equal(got, wanted)


def test_an_unguided_picture_does_not_read_its_negative_prompt(model: Model) -> None:
    one, other = (generate(model, "a red apple", negative, guidance=1.0) for negative in ("", "a blue cat"))
    assert np.array_equal(one, other)


def test_the_same_request_gives_the_same_pixels(model: Model) -> None:
    first, again = (generate(model, "a red apple", seed=9) for _ in range(2))
    assert np.array_equal(first, again)
