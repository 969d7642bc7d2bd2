"""How busy the device has been lately, and who is to be expected: by hand, and after a quiet night."""

from __future__ import annotations

import pytest

from server.pace.behind import THOSE_HERE
from server.pace.load import Load


def worked(load: Load, pictures: int, seconds: float, rest: float) -> None:
    """Make pictures of so many seconds, with a rest before each where there is one."""
    for _ in range(pictures):
        if rest:
            load.rested(rest)
        load.worked(seconds)
        load.finished()


def test_a_device_that_has_done_nothing_has_no_load() -> None:
    assert Load().value == 0 and Load().behind == THOSE_HERE._replace(waiting=20)


@pytest.mark.parametrize(("rest", "value"), [(1.0, 0.5), (3.0, 0.25), (0.25, 0.8)])
def test_it_is_the_part_of_the_time_with_work(rest: float, value: float) -> None:
    load = Load()
    worked(load, 400, 1.0, rest)
    assert load.value == pytest.approx(value, abs=0.03)


def test_a_device_that_never_rests_stays_below_one() -> None:
    load = Load()
    worked(load, 100, 1.0, 0.0)
    assert load.value == 0.95


def test_a_quiet_night_is_forgotten_within_a_hundred_pictures() -> None:
    load = Load()
    worked(load, 200, 1.0, 0.0)
    worked(load, 1, 1.0, 8 * 3600.0)
    assert load.value == pytest.approx(0.5, abs=0.02), "a rest counts no more than all the work that is remembered"
    worked(load, 100, 1.0, 0.0)
    assert load.value > 0.9


def test_a_clock_that_goes_back_gives_no_time() -> None:
    load = Load()
    load.worked(1.0)
    load.worked(-50.0)
    load.rested(-50.0)
    assert load.value == 0.95


def test_more_are_to_come_the_busier_the_device_is_and_the_longer_it_goes_on() -> None:
    load = Load()
    worked(load, 400, 1.0, 1.0)
    assert load.behind == pytest.approx((2**0.5, 0.25, 20), rel=0.1), "it has rested a moment ago"
    worked(load, 400, 1.0, 0.0)
    assert load.behind == pytest.approx((20**0.5, 100, 20), rel=0.1)
    load.rested(0.001)
    assert load.behind == pytest.approx((20**0.5, 0, 20), rel=0.1), "it may rest again as soon"
