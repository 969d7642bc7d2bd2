"""The host stepper against generate's loop: the same bits, whoever else sits."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.backend import Denoiser
from engines.cpu.stepper import HostStepper
from engines.generate import generate
from engines.model import Model
from engines.seat import Sitting
from pipeline.arrays import F32, to_pixels
from pipeline.conditions.mask import Inpaint
from pipeline.samplers import SAMPLERS
from tests.support.requests import Request, conditions_of, finish, latent_shape, random_request, sit, table_of

SEATS = 4


class Recorder:
    """A backend that keeps the latents that it decodes."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.latents: list[F32] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def decode(self, latents: F32) -> F32:
        self.latents.append(latents.copy())
        return self._inner.decode(latents)


def alone(model: Model, request: Request) -> tuple[F32, NDArray[np.uint8]]:
    """Latents and pixels of generate's own loop."""
    recorder = Recorder(model.backend)
    pixels = generate(
        replace(model, backend=recorder),
        request.prompt,
        request.negative,
        seed=request.seed,
        steps=request.steps,
        guidance=request.guidance,
        sampler=request.sampler,
        begin=request.begin,
        **conditions_of(request, latent_shape(model)),
    )
    (latents,) = recorder.latents
    return latents, pixels


@pytest.fixture(scope="module")
def denoiser(model: Model) -> Denoiser:
    return model.backend.denoiser(model.spec.defaults.width, model.spec.defaults.height, rows=2 * SEATS)


@pytest.fixture
def stepper(denoiser: Denoiser) -> HostStepper:
    """New seats over buffers that earlier tests have written into."""
    return HostStepper(denoiser, SEATS)


@pytest.mark.parametrize("seed", range(3))
def test_any_company(model: Model, stepper: HostStepper, seed: int) -> None:
    """Joins, steps of any subset, finishes and departures in the middle, all at random."""
    chance = random.Random(seed)
    tenants: dict[int, Request] = {}
    finished = left = masked = 0
    while finished < 20:
        for seat in range(SEATS):
            if seat not in tenants and chance.random() < 0.5:
                tenants[seat] = random_request(chance)
                sit(stepper, seat, model, tenants[seat])
        stepping = [seat for seat in tenants if chance.random() < 0.7]
        chance.shuffle(stepping)
        predicted = [seat for seat in stepping if chance.random() < 0.3]
        stepper.step(stepping, predict=predicted)
        for seat in stepping:
            request = tenants[seat]
            if stepper.finished(seat):
                latents, pixels = alone(model, request)
                assert np.array_equal(stepper.latents(seat), latents), request
                assert np.array_equal(to_pixels(model.backend.decode(stepper.latents(seat))), pixels), request
                finished += 1
                masked += request.mask is not None
            elif chance.random() > 0.1:
                continue
            else:
                left += 1
            stepper.leave(seat)
            del tenants[seat]
    assert left > 0, "nobody left in the middle"
    assert 0 < masked < finished


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_every_sampler(model: Model, stepper: HostStepper, sampler: str, guidance: float) -> None:
    request = Request("a red apple", "blue", 77, 4, guidance, sampler)
    sit(stepper, 2, model, request)
    assert np.array_equal(finish(stepper, 2), alone(model, request)[0])


@pytest.mark.parametrize("evaluations", [1, 3, 8])
def test_a_tenant_that_is_not_a_number_leaves_no_trace(model: Model, stepper: HostStepper, evaluations: int) -> None:
    bad = Request("a red apple", "", 5, 8, 5.0, "dpmpp_2m")
    run = table_of(model, bad)
    shape = latent_shape(model)
    nothing = np.full((1 + run.draws, *shape), np.nan, np.float32)
    context = np.full((model.spec.text.tokens, model.spec.text.width), np.nan, np.float32)
    good = Request("a blue cat", "red", 6, 5, 3.0, "dpmpp_2m")
    neighbour = Request("the cat", "", 7, 8, 2.0, "euler")
    sit(stepper, 1, model, neighbour)
    masked = Inpaint(np.full(shape[1:], 0.5, np.float32), nothing[0])
    stepper.sit(0, Sitting(run, nothing, context, context, 5.0, inpaint=masked))
    for _ in range(evaluations):
        stepper.step([0, 1], predict=[0])
    assert np.isnan(stepper.latents(0)).all() and np.isnan(stepper.prediction(0)).all()
    stepper.leave(0)
    for request in (good, replace(good, guidance=1.0), replace(good, sampler="ddim"), replace(good, mask=3)):
        sit(stepper, 0, model, request)
        assert np.isfinite(stepper._terms[0]).all(), "joining writes zeros into the history"
        assert np.array_equal(finish(stepper, 0), alone(model, request)[0])
        stepper.leave(0)
    assert np.array_equal(finish(stepper, 1), alone(model, neighbour)[0])


def test_unguided_after_guided_and_back(model: Model, stepper: HostStepper) -> None:
    guided = Request("a red apple", "blue", 1, 3, 6.0, "euler")
    for guidance, rows in ((6.0, 2), (1.0, 1), (0.0, 1), (6.0, 2)):
        request = replace(guided, guidance=guidance)
        sit(stepper, 3, model, request)
        assert stepper.rows(3) == range(6, 6 + rows)
        assert np.array_equal(finish(stepper, 3), alone(model, request)[0])


def test_a_step_computes_only_the_rows_that_sit(model: Model, denoiser: Denoiser) -> None:
    ran: list[list[int]] = []
    stepper = HostStepper(Spy(denoiser, ran), SEATS)  # type: ignore[arg-type]
    sit(stepper, 0, model, Request("a", "", 1, 2, 3.0, "ddim"))
    sit(stepper, 2, model, Request("a", "", 1, 2, 1.0, "ddim"))
    stepper.step([0, 2])
    stepper.step([2])
    assert ran == [[0, 1, 4], [4]]
    assert (stepper.reached(0), stepper.reached(2)) == (1, 2)
    assert stepper.finished(2) and not stepper.finished(0)


class Spy:
    def __init__(self, inner: Denoiser, ran: list[list[int]]) -> None:
        self._inner, self._ran = inner, ran

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, rows: list[int]) -> None:
        self._ran.append(list(rows))
        self._inner.run(rows)


def test_predictions(model: Model, stepper: HostStepper) -> None:
    """x0 is kept when asked for, is a copy, and is what Euler ends at: its last noise level is zero."""
    request = Request("a red apple", "blue", 8, 4, 3.0, "euler")
    sit(stepper, 0, model, request)
    stepper.step([0], predict=[0])
    first = stepper.prediction(0)
    assert np.abs(first).max() > 0
    stepper.step([0])
    assert np.array_equal(stepper.prediction(0), first), "nobody asked for another"
    stepper.step([0])
    stepper.step([0], predict=[0])
    np.testing.assert_allclose(stepper.prediction(0), stepper.latents(0), atol=1e-5)
    assert not np.array_equal(stepper.prediction(0), first)


def test_latents_are_a_copy(model: Model, stepper: HostStepper) -> None:
    sit(stepper, 0, model, Request("a", "", 8, 2, 3.0, "euler"))
    before = stepper.latents(0)
    kept = before.copy()
    stepper.step([0])
    assert np.array_equal(before, kept) and not np.array_equal(stepper.latents(0), kept)


def test_our_own_bugs_are_assertions(model: Model, stepper: HostStepper, denoiser: Denoiser) -> None:
    with pytest.raises(AssertionError, match="seat 1 is empty"):
        stepper.step([1])
    sit(stepper, 1, model, Request("a", "", 8, 1, 3.0, "ddim"))
    finish(stepper, 1)
    with pytest.raises(AssertionError, match="seat 1 is finished"):
        stepper.step([1])
    stepper.leave(1)
    with pytest.raises(AssertionError, match="seat 1 is empty"):
        stepper.finished(1)
    with pytest.raises(AssertionError):
        HostStepper(denoiser, SEATS - 1)
