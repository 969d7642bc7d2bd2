"""How steps that are fast but for some are counted: as their mean, but for one stall."""

from __future__ import annotations

import pytest

from server.pace.bursts import Bursts

NOW = 1000.0


def bursts(*seconds: float, median: float = 0.1) -> Bursts:
    seen = Bursts()
    for one in seconds:
        seen.stepped(NOW, one, median)
    return seen


def test_the_mean_of_what_steps_took_over_the_median() -> None:
    assert bursts(*[0.1] * 20, *[0.9] * 21).value(NOW) == pytest.approx((20 * 0.1 + 20 * 0.9) / 4)


def test_one_stall_is_left_out_and_of_few_steps_nothing_is_said() -> None:
    assert bursts(*[0.1] * 20, 30.0).value(NOW) == pytest.approx(1)
    assert Bursts().value(NOW) == bursts(*[0.9] * 15).value(NOW) == 1 < bursts(*[0.9] * 16).value(NOW)


def test_a_mean_below_the_median_and_a_lane_without_a_pace_say_nothing() -> None:
    assert bursts(*[0.01] * 40).value(NOW) == 1
    assert bursts(*[0.1] * 20, median=0.0).value(NOW) == 1


def test_what_is_ten_seconds_old_is_forgotten() -> None:
    seen = bursts(*[0.9] * 20)
    assert seen.value(NOW + 9.9) == pytest.approx(9) and seen.value(NOW + 10) == 1
