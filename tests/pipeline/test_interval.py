"""Guidance in an interval: which evaluations are guided."""

from __future__ import annotations

import pytest

from pipeline.conditions.interval import WHOLE, Interval
from pipeline.samplers import SAMPLERS, table
from tests.support.trajectories import SD


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("steps", "begin"), [(1, 0), (7, 0), (9, 3)])
def test_the_whole_run_is_guided_unless_something_is_said(sampler: str, steps: int, begin: int) -> None:
    run = table(SD, sampler, steps, begin)
    assert WHOLE.inside(run).tolist() == [True] * run.evaluations


def inside(sampler: str, steps: int, begin: int, *interval: float) -> str:
    return "".join("01"[int(each)] for each in Interval(*interval).inside(table(SD, sampler, steps, begin)))


def test_a_step_counts_where_it_begins() -> None:
    assert inside("ddim", 10, 0, 0.2, 0.7) == "0011111000"
    assert inside("ddim", 10, 0, 0.21, 0.71) == "0001111100"
    assert inside("ddim", 3, 0, 1 / 3, 2 / 3) == "010"
    assert inside("ddim", 4, 0, 0.3, 0.4) == "0000", "between two steps"


def test_all_evaluations_of_a_step_are_alike() -> None:
    assert inside("heun", 5, 0, 0.2, 0.6) == "001111000"
    assert inside("pndm", 5, 0, 0.0, 0.2) == "110000" and inside("pndm", 5, 0, 0.2, 0.4) == "001000"


def test_fractions_are_of_the_steps_that_are_made() -> None:
    assert inside("euler", 10, 6, 0.0, 0.5) == "1100"
