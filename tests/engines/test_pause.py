"""A paused picture goes on where it was, in any seat, to the bit: on both steppers."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from engines.backend import Stepper
from engines.cpu.stepper import HostStepper
from engines.model import Model
from engines.seat import Sitting
from pipeline.arrays import F32
from pipeline.noise import standard_normal
from pipeline.samplers import SAMPLERS, STATE, table
from tests.support.bench import toy_bench
from tests.support.requests import Request, inpaint_of
from tests.support.toy import SEATS, SHAPE, Toy, toy_context, toy_sit


@pytest.fixture(scope="module", params=["host", "fast", "exact"])
def stepper(request: pytest.FixtureRequest) -> Stepper:
    """Three steppers over the toy network, whose bits are the same alone and in batches."""
    return HostStepper(Toy(), SEATS) if request.param == "host" else toy_bench(request.param == "exact").stepper


def sitting_of(model: Model, sampler: str, masked: bool, guided: bool = True) -> Sitting:
    run = table(model.spec.schedule, sampler, 5)
    noise = standard_normal(8, SHAPE, draws=1 + run.draws)
    inpaint = inpaint_of(Request("", "", 8, 5, 3.0, sampler, mask=4 if masked else None), SHAPE)
    negative = toy_context("b") if guided else None
    return Sitting(run, noise, toy_context("a"), negative, 3.0 if guided else 1.0, inpaint=inpaint)


def run_of(stepper: Stepper, sitting: Sitting, seat: int) -> list[F32]:
    """x after each evaluation from `sitting.start` on."""
    stepper.sit(seat, sitting)
    x = []
    while not stepper.finished(seat):
        stepper.step([seat])
        x.append(stepper.pending_latents(seat).get())
    stepper.leave(seat)
    return x


def spoil(stepper: Stepper, model: Model, seat: int) -> None:
    """Leave a tenant's traces in a seat: its buffers have had other numbers."""
    run = table(model.spec.schedule, "dpmpp_2m_sde", 3)
    noise = np.full((1 + run.draws, *SHAPE), np.nan, np.float32)
    stepper.sit(seat, Sitting(run, noise, toy_context("x"), toy_context("y"), 7.0))
    stepper.step([seat])
    stepper.leave(seat)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_paused_before_every_evaluation_it_has_the_bits_of_no_pause(
    stepper: Stepper, oracle: Model, sampler: str, masked: bool
) -> None:
    sitting = sitting_of(oracle, sampler, masked)
    wanted = run_of(stepper, sitting, 1)
    for at in range(len(wanted)):
        stepper.sit(1, sitting)
        for _ in range(at):
            stepper.step([1])
        assert stepper.reached(1) == at
        pending = stepper.pause(1)
        spoil(stepper, oracle, 1)  # whoever sits there next changes nothing
        spoil(stepper, oracle, 3)
        state = pending.get()
        assert state.shape == (STATE, *SHAPE)
        resumed = run_of(stepper, replace(sitting, start=at, state=state), 3)
        assert [x.tobytes() for x in resumed] == [x.tobytes() for x in wanted[at:]], f"paused before {at}"


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc", "pndm", "heun"])
def test_the_history_is_needed(stepper: Stepper, oracle: Model, sampler: str) -> None:
    """Else the test above would compare what nobody has lost."""
    sitting = sitting_of(oracle, sampler, masked=False)
    wanted = run_of(stepper, sitting, 1)
    stepper.sit(1, sitting)
    for _ in range(3):
        stepper.step([1])
    state = stepper.pause(1).get()
    assert not np.array_equal(run_of(stepper, replace(sitting, start=3, x=state[0]), 0)[-1], wanted[-1])
    assert np.array_equal(run_of(stepper, replace(sitting, start=3, state=state), 0)[-1], wanted[-1])


def test_paused_and_resumed_in_company(stepper: Stepper, oracle: Model) -> None:
    """Each turn the one that sits in seat 1 gives it to the one that waits, while others step."""
    sittings = [
        sitting_of(oracle, "unipc", masked=False),
        sitting_of(oracle, "dpmpp_2m_sde", masked=True, guided=False),
        sitting_of(oracle, "heun", masked=True),
    ]
    wanted = [run_of(stepper, sitting, 0)[-1] for sitting in sittings]
    toy_sit(stepper, 0, oracle, Request("c", "", 2, 8, 4.0, "euler_a"))  # type: ignore[arg-type]
    waiting: deque[tuple[int, Sitting]] = deque(enumerate(sittings))
    last, pauses = {}, 0
    while waiting:
        picture, sitting = waiting.popleft()
        stepper.sit(1, sitting)
        stepper.step([1] if stepper.finished(0) else [0, 1])
        if stepper.finished(1):
            last[picture] = stepper.pending_latents(1).get()
            stepper.leave(1)
        else:
            start = stepper.reached(1)
            waiting.append((picture, replace(sitting, start=start, state=stepper.pause(1).get())))
            pauses += 1
    assert pauses > 10 and all(np.array_equal(last[picture], wanted[picture]) for picture in range(3))
