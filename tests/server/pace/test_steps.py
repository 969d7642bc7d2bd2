"""What steps of many rows are told to take beside those of few, on machines that are not as fast in every second."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest

from server.pace.steps import Steps


def true(rows: int) -> float:
    """Seconds: 16 rows together take 0.89 of what eight steps of two take."""
    return 0.0018 + 0.0066 * rows


def noted(noise: Callable[[random.Random, int], float], seed: int) -> Steps:
    """Note steps of 2 to 16 rows, mostly as many as before, on a machine whose speed wanders by a tenth and more."""
    draw, known, speed, rows = random.Random(seed), Steps(0.0066), 0.0, 2
    for step in range(1200):
        speed = 0.95 * speed + 0.03 * draw.gauss(0, 1)
        rows = 2 * draw.randint(1, 8) if step % 5 == 0 else rows
        known.stepped(rows, true(rows) * math.exp(speed) * noise(draw, rows))
    return known


def compared(known: Steps, rows: int) -> float:
    """Return what so many rows take, over as many by twos."""
    few, many = known.value(2), known.value(rows)
    assert few and many
    return many / (few * rows / 2)


def test_a_machine_that_is_faster_in_one_second_than_in_the_next_tells_the_same_of_rows() -> None:
    each = [noted(lambda draw, rows: draw.uniform(0.92, 1.08), seed) for seed in range(6)]
    for rows in (4, 8, 16):
        told = [compared(known, rows) / (true(rows) / true(2) / (rows / 2)) for known in each]
        assert statistics.mean(told) == pytest.approx(1, abs=0.02) and max(abs(ratio - 1) for ratio in told) < 0.08


def test_what_lets_somebody_in_says_nothing_of_rows() -> None:
    """It holds up the last step of few rows before those of more; taken whole, more seem to save a seventh by that."""
    for seed in range(6):
        draw, known, speed = random.Random(seed), Steps(0.0066), 0.0
        for rows in [2, 4] * 80:
            last = draw.randint(5, 20)
            for step in range(last + 1):
                speed = 0.95 * speed + 0.02 * draw.gauss(0, 1)
                held_up = 1.5 if rows == 2 and step == last else draw.choice([1.3, 2.0]) if draw.random() < 0.05 else 1
                known.stepped(rows, true(rows) * math.exp(speed) * draw.uniform(0.97, 1.03) * held_up)
        assert compared(known, 4) == pytest.approx(true(4) / (2 * true(2)), rel=0.05)


def test_some_short_steps_that_are_long_count_by_a_tenth() -> None:
    """One step of two rows in ten takes twice as long."""
    each = [noted(lambda draw, rows: 2.0 if rows == 2 and draw.random() < 0.1 else 1.0, seed) for seed in range(6)]
    told = statistics.mean(compared(known, 16) for known in each)
    assert true(16) / (8 * 1.1 * true(2)) < told < 1.02 * true(16) / (8 * true(2))


@pytest.mark.parametrize(
    "times",
    [lambda step: 1.5 if step % 40 < 4 else 1.0, lambda step: 1 + 0.3 * (step % 60) / 60],
    ids=["another process comes and goes", "slower and slower, and fast again"],
)
def test_what_is_hardly_ever_stepped_is_no_dearer_for_it(times: Callable[[int], float]) -> None:
    """Of 131 steps 130 have two rows. Told by each step, 16 were 2.4 times as dear after all these, or 0.89 times."""
    draw, known = random.Random(1), Steps(0.0066)
    for step in range(18_000):
        rows = 16 if step % 131 == 130 else 2
        known.stepped(rows, true(rows) * times(step) * draw.uniform(0.97, 1.03))
    assert compared(known, 16) == pytest.approx(true(16) / (8 * true(2)), rel=0.05)


def test_numbers_that_are_stepped_by_turns_do_not_move_away_from_one_that_is_not() -> None:
    """What one gets the other gives, times and over: added and taken off, 16 rows were 7% dearer after these."""
    draw, known = random.Random(1), Steps(0.0066)
    for rows in (*[2, 4, 16] * 40, *[2, 4] * 30_000):
        known.stepped(rows, true(rows) * draw.uniform(0.92, 1.08))
    assert compared(known, 16) == pytest.approx(true(16) / (8 * true(2)), rel=0.04)


def test_one_long_step_behind_one_of_others_is_no_rule_for_those_that_were_stepped_for_long() -> None:
    known = Steps(0.0066)
    for rows in (*[2] * 5000, 16):
        known.stepped(rows, true(rows))
    known.stepped(2, 2 * true(2))
    for _ in range(129):
        known.stepped(2, true(2))
    assert compared(known, 16) == pytest.approx(true(16) / (8 * true(2)), rel=0.05)


def test_a_stop_in_the_first_step_of_all_is_forgotten_when_others_are_stepped() -> None:
    """Its own rows are believed to be as dear as they were until they are stepped again, up to twenty times."""
    known = Steps(0.0066)
    known.stepped(2, 3600.0)
    for _ in range(40):
        known.stepped(16, true(16))
    assert known.value(16) == pytest.approx(true(16), rel=0.02)
    told = known.value(2)
    assert told and told <= 21 * true(2)
    for _ in range(3):
        known.stepped(2, true(2))
    told = known.value(2)
    assert told and told <= 3 * true(2)


@pytest.mark.parametrize("rows", [2, 4])  # one that is known, and one that is new
@pytest.mark.parametrize("stall", [1.0, 20.0, 1e9])
def test_a_stop_is_nearly_forgotten_after_ten_steps(rows: int, stall: float) -> None:
    known = Steps(0.0066)
    for each in (*[2, 16] * 200, rows):
        known.stepped(each, true(each))
    known.stepped(rows, stall)
    after = [known.value(each) for each in (2, 16)]
    assert all(now and now <= 1.4 * true(each) for now, each in zip(after, (2, 16), strict=True))
    for each in [2, 16] * 5:
        known.stepped(each, true(each))
    assert known.value(16) == pytest.approx(true(16), rel=0.02) and known.value(2) == pytest.approx(true(2), rel=0.02)


def test_a_number_that_was_first_seen_during_a_stop_is_believed_again() -> None:
    known = Steps(0.0066)
    for rows in [2, 16] * 50:
        known.stepped(rows, true(rows))
    known.stepped(8, 3600.0)
    for rows in [2, 16, 8] * 20:
        known.stepped(rows, true(rows))
    assert known.value(8) == pytest.approx(true(8), rel=0.1)


def test_a_machine_that_is_ten_times_as_fast_or_slow_is_followed() -> None:
    known = Steps(0.0066)
    for factor in (1.0, 10.0, 1.0, 0.1):
        for _ in range(25):
            known.stepped(16, factor * true(16))
        assert known.value(16) == pytest.approx(factor * true(16), rel=0.02)


def test_clocks_that_go_back_or_stand_change_nothing_for_good() -> None:
    known = Steps(0.0)
    for seconds in (0.0, -5.0, 0.0, *[0.1] * 200):
        known.stepped(2, seconds)
    assert known.value(2) == pytest.approx(0.1, rel=0.02)


def test_between_and_beyond_what_was_it_is_in_proportion() -> None:
    known = Steps(0.5)
    assert known.value(4) is None
    known.stepped(4, 1.0)
    known.stepped(16, 1.6)
    assert [known.value(rows) for rows in (2, 4, 10, 16, 32)] == pytest.approx([0.5, 1.0, 1.3, 1.6, 3.2])


def test_one_step_of_rows_between_two_known_numbers_says_little_and_a_dozen_what_is_so() -> None:
    """It is not stepped again for long where one slow step made it look dear."""
    known = Steps(0.0066)
    for rows in [2, 16] * 50:
        known.stepped(rows, true(rows))
    known.stepped(8, 1.3 * true(8))
    assert known.value(8) == pytest.approx(1.1 * true(8), rel=0.03)
    for rows in [2, 16, 8] * 12:
        known.stepped(rows, (1.3 if rows == 8 else 1.0) * true(rows))
    assert compared(known, 8) == pytest.approx(1.3 * true(8) / (4 * true(2)), rel=0.06)
