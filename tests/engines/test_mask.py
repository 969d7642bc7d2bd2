"""Masks: latents of diffusers' inpainting pipeline, and the same bits from both steppers and generate's loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import StableDiffusionInpaintPipeline

from engines.cpu.stepper import HostStepper
from engines.cpu.torch import TorchBackend
from engines.generate import latents_of
from engines.model import Model
from engines.seat import Sitting
from pipeline.arrays import F32
from pipeline.conditions.mask import Inpaint
from pipeline.noise import standard_normal
from pipeline.samplers import SAMPLERS, table
from pipeline.tokenizer import ClipTokenizer
from tests.support.bare import bare_checkpoint
from tests.support.bench import toy_bench
from tests.support.requests import latent_shape
from tests.support.toy import SEATS, SHAPE, Toy, toy_context
from tests.support.trajectories import THEIRS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

ASKED: dict[str, Any] = {"prompt": "a red apple", "negative_prompt": "the blue cat"}
# Of max|x|, after seven steps: two UNets in float32, which sum in other orders. Seen: 1.7e-6.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Four channels: of any other number diffusers' pipeline says that it is no inpainting model."""
    channels = {"in_channels": 4, "out_channels": 4}
    bare = bare_checkpoint(tmp_path_factory, unet=channels, vae={"latent_channels": 4})
    return Model(bare, ClipTokenizer(bare.source, bare.spec.text), TorchBackend(bare, threads=1))


@pytest.fixture(scope="module")
def pipe(four: Model) -> Any:
    made: Any = StableDiffusionInpaintPipeline.from_pretrained(
        four.checkpoint.path, safety_checker=None, requires_safety_checker=False, dtype=torch.float32
    )
    made.set_progress_bar_config(disable=True)
    # Their own makes every mask black and white; what comes after it does not.
    made.mask_processor = VaeImageProcessor(made.vae_scale_factor, do_normalize=False, do_convert_grayscale=True)
    made.checkpoints_own = made.scheduler.config
    return made


def made_up(shape: tuple[int, ...], seed: int = 5) -> Inpaint:
    """Places that stay, places that are made anew, and a soft edge between them."""
    chance = np.random.default_rng(seed)
    mask = np.clip(np.linspace(-1, 2, shape[1] * shape[2], dtype=np.float32).reshape(shape[1:]), 0, 1)
    return Inpaint(mask, chance.standard_normal(shape, np.float32))


def theirs(pipe: Any, sampler: str, steps: int, seed: int, guidance: float, inpaint: Inpaint) -> F32:
    scheduler, switches = THEIRS[sampler]
    pipe.scheduler = scheduler.from_config(pipe.checkpoints_own, **switches)
    side = pipe.vae_scale_factor
    original = torch.from_numpy(inpaint.original)[None]
    mask = torch.from_numpy(inpaint.mask).repeat_interleave(side, 0).repeat_interleave(side, 1)
    result = pipe(
        **ASKED,
        image=original,  # of four channels: taken for latents
        mask_image=mask[None, None],
        masked_image_latents=torch.zeros_like(original),  # what a UNet of nine channels would see
        height=inpaint.mask.shape[0] * side,
        width=inpaint.mask.shape[1] * side,
        strength=1.0,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    )
    return result.images[0].numpy()


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_latents_of_diffusers(sampler: str, guidance: float, four: Model, pipe: Any) -> None:
    inpaint, asked = made_up(latent_shape(four)), {"sampler": sampler, "steps": 7, "seed": 4, "guidance": guidance}
    wanted = theirs(pipe, inpaint=inpaint, **asked)
    got, free = latents_of(four, **ASKED, **asked, inpaint=inpaint), latents_of(four, **ASKED, **asked)
    most = np.abs(wanted).max()
    assert np.abs(got - wanted).max() < CLOSE * most
    assert np.array_equal(got[:, inpaint.mask == 0], inpaint.original[:, inpaint.mask == 0])
    anew = inpaint.mask == 1
    assert np.abs(got - free)[:, anew].max() > 1000 * CLOSE * most, "what stays is seen by what is made"


@dataclass(frozen=True)
class Told:
    x: list[F32]  # after each evaluation
    x0: list[F32]


Stepper = Any
Steps = Callable[..., Told]


@pytest.fixture(scope="module", params=["host", "fast", "exact"])
def stepper(request: pytest.FixtureRequest) -> Stepper:
    """Three steppers over the toy network, whose bits are the same alone and in batches."""
    return HostStepper(Toy(), SEATS) if request.param == "host" else toy_bench(request.param == "exact").stepper


def told(stepper: Stepper, model: Model, sampler: str, inpaint: Inpaint | None, *, begin: int = 0) -> Told:
    """A run of five steps in seat 1, of which the first are not made."""
    run = table(model.spec.schedule, sampler, 5, begin)
    noise, x = standard_normal(8, SHAPE, draws=1 + run.draws), []
    x0 = standard_normal(9, SHAPE)[0] if begin else None
    stepper.sit(1, Sitting(run, noise, toy_context("a"), toy_context("b"), 3.0, x=x0, inpaint=inpaint))
    x0 = []
    while not stepper.finished(1):
        stepper.step([1], predict=[1])
        x.append(stepper.latents(1))
        x0.append(stepper.prediction(1))
    stepper.leave(1)
    return Told(x, x0)


def same(one: list[F32], other: list[F32]) -> bool:
    return [x.tobytes() for x in one] == [x.tobytes() for x in other]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_of_both_steppers(stepper: Stepper, oracle: Model, sampler: str) -> None:
    inpaint = made_up(SHAPE)
    ones = Inpaint(np.ones(SHAPE[1:], np.float32), np.full(SHAPE, np.inf, np.float32))
    zeros = Inpaint(np.zeros(SHAPE[1:], np.float32), inpaint.original)
    host = HostStepper(Toy(), SEATS)
    free = told(stepper, oracle, sampler, None)
    masked = told(stepper, oracle, sampler, inpaint)
    again = told(stepper, oracle, sampler, None)
    assert same(again.x, free.x) and same(again.x0, free.x0), "a seat's mask leaves with its tenant"
    wanted = told(host, oracle, sampler, inpaint)
    assert same(masked.x, wanted.x) and same(masked.x0, wanted.x0)
    assert np.array_equal(masked.x0[0], free.x0[0]), "x0 is what the network makes of x, and x is noise at first"
    assert not np.array_equal(masked.x0[1], free.x0[1]), "what stays is seen"
    new = told(stepper, oracle, sampler, ones)
    assert same(new.x, free.x) and same(new.x0, free.x0), "all made anew: the bits of no mask"
    kept = told(stepper, oracle, sampler, zeros)
    assert np.array_equal(kept.x[-1], inpaint.original), "0 x + 1 original, which float32 has exactly"


@pytest.mark.parametrize("sampler", ["ddim", "heun", "euler_a"])
def test_a_start_in_the_middle(stepper: Stepper, oracle: Model, sampler: str) -> None:
    """The level after an evaluation is the table's, wherever the picture began."""
    run, inpaint = table(oracle.spec.schedule, sampler, 5, 2), made_up(SHAPE)
    got = told(stepper, oracle, sampler, inpaint, begin=2)
    assert len(got.x) == run.evaluations
    noise, stays = standard_normal(8, SHAPE)[0].astype(float), inpaint.mask == 0
    for x, (alpha, sigma) in zip(got.x, run.levels[1:], strict=True):
        # Two float32 products and a sum, of numbers up to the level's.
        np.testing.assert_allclose(
            x[:, stays], (alpha * inpaint.original + sigma * noise)[:, stays], rtol=0, atol=1e-6 * (1 + sigma)
        )


def test_generate_starts_in_the_middle_too(oracle: Model) -> None:
    shape, run = latent_shape(oracle), table(oracle.spec.schedule, "euler_a", 5, 2)
    inpaint, x = made_up(shape), standard_normal(9, shape)[0]
    asked = {"sampler": "euler_a", "steps": 5, "seed": 4, "guidance": 4.0}
    got = latents_of(oracle, **ASKED, **asked, begin=2, x=x, inpaint=inpaint)
    stepper = oracle.backend.stepper(oracle.spec.defaults.width, oracle.spec.defaults.height, SEATS)
    contexts = [oracle.backend.encode(oracle.tokenizer.encode(text).ids) for text in ASKED.values()]
    noise = standard_normal(4, shape, draws=1 + run.draws)
    stepper.sit(2, Sitting(run, noise, contexts[0], contexts[1], 4.0, x=x, inpaint=inpaint))
    for _ in range(3):
        stepper.step([2])
    assert stepper.finished(2) and np.array_equal(stepper.pending_latents(2).get(), got)
    assert not np.array_equal(latents_of(oracle, **ASKED, **asked, x=x, inpaint=inpaint), got)


def test_a_mask_and_its_picture_fit() -> None:
    """Whoever makes one has checked the request: another mask is our bug."""
    mask, original = np.ones(SHAPE[1:], np.float32), np.ones(SHAPE, np.float32)
    for wrong in (mask[:-1], mask.astype(float), mask + 1, mask * np.float32(np.nan), original):
        with pytest.raises(AssertionError):
            Inpaint(wrong, original)
