"""What one sample may change, and what a changed machine does: numbers in, numbers out."""

from __future__ import annotations

import itertools
import random

import pytest

from server.pace.bursts import Bursts
from server.pace.median import Median
from server.pace.pace import Pace
from server.wish import LaneKey

NOW = 1000.0
LANE, LONG = LaneKey(8, 8, 1), LaneKey(8, 8, 2)
SIZE = (8, 8)


@pytest.mark.parametrize("stall", [0.4, 3.0, 20.0, 3600.0, 1e9])
@pytest.mark.parametrize("steps", [0, 1, 2, 50])
def test_one_stall_of_any_length_changes_nothing(stall: float, steps: int) -> None:
    """A paused container, a frozen machine, a step 100 times slower than the last."""
    pace = Pace({LANE: 0.004})
    for _ in range(steps):
        pace.stepped(LANE, 16, 16 * 0.004, NOW)
    pace.stepped(LANE, 16, stall, NOW)
    assert pace.row(LANE) == pytest.approx(0.004)
    assert pace.full_step(8) == pytest.approx(16 * 0.004)


def test_clocks_that_jump_change_nothing() -> None:
    pace = Pace({LANE: 0.004})
    for seconds in (0.064, -20.0, 0.064, 86400.0, -1e9, 0.064):
        pace.stepped(LANE, 16, seconds, NOW)
    assert pace.row(LANE) == pytest.approx(0.004)


def test_stalls_now_and_then_change_nothing() -> None:
    draw, pace, now = random.Random(1), Pace({LANE: 0.004}), NOW
    for step in range(300):
        seconds = 30.0 if step % 3 == 0 else 0.064 * draw.uniform(0.9, 1.1)
        now += seconds
        pace.stepped(LANE, 16, seconds, now)
        assert pace.row(LANE) <= 0.0044


def test_another_load_is_followed_within_five_steps() -> None:
    pace = Pace({LANE: 0.004})
    for _ in range(20):
        pace.stepped(LANE, 16, 0.064, NOW)
    for slower in (True, False):
        for _ in range(5):
            pace.stepped(LANE, 16, 0.64 if slower else 0.064, NOW)
        assert pace.row(LANE) == pytest.approx(0.04 if slower else 0.004)


def test_slices_of_a_processor_make_a_step_cost_its_mean_until_they_are_forgotten() -> None:
    """Every third step takes ten times as long: a median says nothing of it, and a request has many steps."""
    pace, now = Pace({LANE: 0.004}), NOW
    for step in range(200):
        seconds = 0.64 if step % 3 == 0 else 0.064
        now += seconds
        pace.stepped(LANE, 16, seconds, now)
    assert 3 < pace.row(LANE) / 0.004 < 4.5 and pace.full_step(8) == pytest.approx(16 * pace.row(LANE))
    pace.forget(now + 10)
    assert pace.row(LANE) == pytest.approx(0.004)


def test_short_steps_are_not_each_looked_back_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at 256 steps is as dear as all else beside one; what is told is a tenth of a second old at most."""
    looks: list[float] = []

    def value(bursts: Bursts, now: float) -> float:
        looks.append(now)
        return 1.0 + len(looks)

    monkeypatch.setattr(Bursts, "value", value)
    pace = Pace({LANE: 0.004})
    for step in range(1000):
        pace.stepped(LANE, 1, 0.004, NOW + 0.004 * step)
    assert 30 <= len(looks) <= 41 and max(b - a for a, b in itertools.pairwise(looks)) < 0.105
    assert pace.row(LANE) == pytest.approx(0.004 * (1 + len(looks)))
    pace.forget(NOW + 4.0)
    assert looks[-1] == NOW + 4.0, "a forecast looks by itself"


def test_a_pace_may_be_asked_while_steps_of_other_sizes_come() -> None:
    """The event loop forecasts what is left of the model before; meanwhile its device notes a first step of 3 rows."""
    pace = Pace({LANE: 0.05})
    for rows in (2, 16):
        pace.stepped(LANE, rows, 0.1, NOW)

    class Asks(int):
        """A number of rows; looking whether another one is less has the device thread note a step."""

        def __gt__(self, other: object) -> bool:
            pace.stepped(LANE, 3 + len(seen), 0.1, NOW)
            seen.append(other)
            return int(self) > int(other)  # type: ignore[call-overload]

    seen: list[object] = []
    assert pace.step(LANE, Asks(8)) == pytest.approx(0.1)
    assert seen


def test_of_two_samples_the_lower_one_counts() -> None:
    assert Median().value == 0 and Median([3.0]).value == 3 and Median([3.0, 1.0]).value == 1


def test_each_cost_has_its_own_samples() -> None:
    pace = Pace({LANE: 0.1})
    assert (pace.chunk, pace.decode(SIZE), pace.file(SIZE, "png")) == (0, 0, 0), "nothing is known of it"
    pace.encoded(3, 0.3)
    pace.decoded(SIZE, 0.5)
    pace.written(SIZE, "png", 0.25)
    assert (pace.chunk, pace.decode(SIZE), pace.file(SIZE, "png")) == (pytest.approx(0.1), 0.5, 0.25)
    assert pace.decode((16, 8)) == pace.file((16, 8), "png") == pace.file(SIZE, "webp") == 0


def test_a_lane_that_has_not_stepped_has_the_pace_of_its_size() -> None:
    pace = Pace({LANE: 0.1})
    pace.open(LONG)
    assert pace.row(LONG) == 0.1
    pace.stepped(LONG, 2, 0.6, NOW)
    pace.stepped(LONG, 2, 0.6, NOW)
    assert pace.row(LONG) == pytest.approx(0.3) and pace.row(LANE) == 0.1


def test_a_step_takes_what_it_took_and_between_two_in_proportion() -> None:
    pace = Pace({LANE: 0.5, LONG: 0.5})
    assert pace.step(LANE, 4) == 2.0, "nothing is known but a row"
    pace.stepped(LANE, 4, 1.0, NOW)
    assert (pace.step(LANE, 4), pace.step(LANE, 2), pace.step(LANE, 8)) == (1.0, 0.5, 2.0)
    pace.stepped(LANE, 16, 1.6, NOW)
    assert (pace.step(LANE, 10), pace.step(LANE, 32)) == (pytest.approx(1.3), pytest.approx(3.2))
    assert pace.step(LONG, 2) == 1.0


def test_a_stop_of_the_process_is_no_load() -> None:
    pace, now = Pace({LANE: 0.01}), 0.0
    for _ in range(100):
        now += 0.2
        pace.rested(0.18)
        pace.stepped(LANE, 2, 0.02, now)
        pace.decoded(SIZE, 0.0)
    before, now = pace.load, now + 3600
    pace.stepped(LANE, 2, 3600.0, now)
    assert before == pytest.approx(0.1, rel=0.05) and pace.load <= 1.5 * before
