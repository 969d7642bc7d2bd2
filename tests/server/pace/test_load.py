"""How busy the device has been lately: by hand, and after a quiet night."""

from __future__ import annotations

import pytest

from server.pace.load import Load


def worked(load: Load, steps: int, seconds: float, rest: float, begin: float = 0.0) -> float:
    """Take steps of so many seconds, each a picture, with a rest before each; returns when the last one ended."""
    now = begin
    for _ in range(steps):
        now += rest + seconds
        load.stepped(seconds, now)
        load.finished()
    return now


def test_a_device_that_has_done_nothing_has_no_load() -> None:
    assert Load().value == 0


@pytest.mark.parametrize(("rest", "value"), [(1.0, 0.5), (3.0, 0.25), (0.25, 0.8)])
def test_it_is_the_part_of_the_time_with_work(rest: float, value: float) -> None:
    load = Load()
    worked(load, 400, 1.0, rest)
    assert load.value == pytest.approx(value, rel=0.01)


def test_what_is_done_beside_steps_counts() -> None:
    load, now = Load(), 0.0
    for _ in range(400):
        now += 4.0
        load.worked(1.0)
        load.stepped(1.0, now)
        load.finished()
    assert load.value == pytest.approx(0.5, rel=0.01)


def test_a_device_that_never_rests_stays_below_one() -> None:
    load = Load()
    worked(load, 100, 1.0, 0.0)
    assert load.value == 0.95


def test_a_quiet_night_is_forgotten_within_a_hundred_pictures() -> None:
    load = Load()
    evening = worked(load, 200, 1.0, 0.0)
    worked(load, 1, 1.0, 8 * 3600.0, evening)
    assert load.value == pytest.approx(0.5, abs=0.02), "a rest counts no more than all the work that is remembered"
    worked(load, 100, 1.0, 0.0, evening + 8 * 3600)
    assert load.value > 0.9


def test_a_clock_that_goes_back_gives_no_time() -> None:
    load = Load()
    load.stepped(1.0, 100.0)
    load.stepped(1.0, 50.0)
    assert load.value == 0.95
