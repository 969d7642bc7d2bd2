"""The queue played forward, against sums done by hand."""

from __future__ import annotations

import pytest

from server.batcher import Batcher
from server.forecast import Forecast, forecast
from tests.server.jobs import idle_job, wish

SMALL, LARGE = (8, 8, 1), (16, 8, 1)
ROW = {SMALL: 0.1, LARGE: 0.5}  # seconds


def batcher(*wishes, seats: int = 1) -> Batcher:
    """With these jobs seated as far as they can be."""
    made = Batcher([SMALL, LARGE], seats)
    for asked in wishes:
        made.add(idle_job(asked))
    while made.seat_next():
        pass
    return made


def about(wait: float, finish: float) -> Forecast:
    return Forecast(pytest.approx(wait), pytest.approx(finish))


def test_an_idle_server_takes_evaluations_times_rows() -> None:
    assert forecast(batcher(), wish(evaluations=10), ROW) == about(0, 2)
    assert forecast(batcher(), wish(evaluations=10, rows=1), ROW) == about(0, 1)
    assert forecast(batcher(), wish(lane=LARGE, evaluations=10), ROW) == about(0, 10)


def test_who_sits_shares_the_device() -> None:
    assert forecast(batcher(wish(evaluations=3), seats=2), wish(evaluations=10), ROW) == about(0, 3 * 0.4 + 7 * 0.2)


def test_what_has_been_done_of_a_seat_is_not_counted_again() -> None:
    seated = batcher(wish(evaluations=10))
    seated.lanes[SMALL].tenants[0].reached = 9
    assert forecast(seated, wish(evaluations=5), ROW) == about(0.2, 0.2 + 1.0)


def test_who_waits_before_it_is_waited_for() -> None:
    queue = batcher(wish(evaluations=10), wish(evaluations=5))
    assert forecast(queue, wish(evaluations=1), ROW) == about(2 + 1, 2 + 1 + 0.2)


def test_a_higher_priority_overtakes_the_queue_but_not_the_seats() -> None:
    queue = batcher(wish(evaluations=10), wish(evaluations=5))
    assert forecast(queue, wish(evaluations=1, priority=1), ROW) == about(2, 2.2)


def test_other_lanes_take_their_turns() -> None:
    busy = batcher(wish(lane=LARGE, evaluations=2))
    assert forecast(busy, wish(evaluations=4), ROW) == about(0, 2 * (1.0 + 0.2) + 2 * 0.2)


def test_its_own_pictures_are_no_queue() -> None:
    """Eight pictures on one seat of an idle server take long, but a seat is free at once."""
    assert forecast(batcher(), wish(evaluations=10, images=8), ROW) == about(0, 8 * 2)


def test_a_seat_that_has_just_finished_is_free() -> None:
    seated = batcher(wish(evaluations=10))
    seated.lanes[SMALL].tenants[0].reached = 10  # its decoding is under way
    assert forecast(seated, wish(evaluations=5), ROW) == about(0, 1)
