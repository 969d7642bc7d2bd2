"""What forecasts learn from how wrong they were."""

from __future__ import annotations

import pytest

from server.pace.margin import Margin

NOW = 1000.0


def margin(*ratios: float, now: float = NOW) -> Margin:
    learned = Margin()
    for ratio in ratios:
        learned.ended(now, ratio)
    return learned


def test_nothing_is_multiplied_where_nothing_has_ended() -> None:
    assert Margin().value(NOW) == 1


def test_a_high_quantile_counts() -> None:
    assert margin(*(1 + i / 1000 for i in range(101))).value(NOW) == pytest.approx(1.098)


@pytest.mark.parametrize(("ratio", "learned"), [(0.2, 1), (1.0, 1), (1.3, 1.3), (2.5, 2), (200.0, 2)])
def test_it_is_at_least_one_and_at_most_two(ratio: float, learned: float) -> None:
    assert margin(ratio).value(NOW) == learned


def test_what_ended_more_than_ten_seconds_ago_is_forgotten() -> None:
    learned = margin(1.5)
    learned.ended(NOW + 5, 1.2)
    assert learned.value(NOW + 9.9) == 1.2, "of two the lower one: one alone may be a stall"
    assert learned.value(NOW + 10) == 1.2 and learned.value(NOW + 15) == 1
