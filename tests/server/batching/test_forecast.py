"""The queue played forward, against sums done by hand."""

from __future__ import annotations

import pytest

from server.batching.batcher import Batcher
from server.batching.forecast import Forecast, Making, forecast
from server.wish import LaneKey
from tests.support.jobs import idle_job, wish

SMALL, LARGE = LaneKey(8, 8, 1), LaneKey(16, 8, 1)
ROW = {SMALL: 0.1, LARGE: 0.5}  # seconds


def batcher(*wishes, seats: int = 1) -> Batcher:
    """With these jobs seated as far as they can be."""
    made = Batcher([SMALL, LARGE], seats)
    for asked in wishes:
        made.add(idle_job(asked))
    while made.seat_next():
        pass
    return made


def about(wait: float, finish: float, lane_ready: float = 0.0) -> Forecast:
    return Forecast(pytest.approx(wait), pytest.approx(finish), pytest.approx(lane_ready))


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


LONG, LONGER = LaneKey(8, 8, 2), LaneKey(8, 8, 3)
ROWS = {**ROW, LONG: 0.1, LONGER: 0.1}
MAKING = Making({LONG: 30.0, LONGER: 40.0})


def unmade(*wishes, seats: int = 1) -> Batcher:
    """As `batcher`; the lanes of long prompts are yet to be made."""
    opened = batcher(seats=seats)
    opened.open(LONG)
    opened.open(LONGER)
    for asked in wishes:
        opened.add(idle_job(asked))
    while opened.seat_next():
        pass
    return opened


def test_a_lane_is_made_before_anybody_sits_in_it() -> None:
    long = wish(lane=LONG, evaluations=10)
    assert forecast(unmade(), long, ROWS, MAKING) == about(30, 30 + 2, lane_ready=30)
    assert forecast(unmade(), long, ROWS, Making()) == about(0, 2), "nothing is known of it"
    assert forecast(unmade(), wish(evaluations=10), ROWS, MAKING) == about(0, 2), "others do not wait for it"
    queue = unmade(wish(lane=LONG, evaluations=5))
    assert forecast(queue, long, ROWS, MAKING) == about(30 + 1, 30 + 1 + 2, lane_ready=30), (
        "both wait, one after the other"
    )


def test_a_lane_that_is_being_made_has_had_some_of_its_time() -> None:
    under_way = Making(MAKING.seconds, LONG, done=20.0)
    assert forecast(unmade(), wish(lane=LONG, evaluations=10), ROWS, under_way) == about(10, 12, lane_ready=10)
    late = Making(MAKING.seconds, LONG, done=99.0)
    assert forecast(unmade(), wish(lane=LONG, evaluations=10), ROWS, late) == about(0, 2)


def test_lanes_are_made_one_after_the_other() -> None:
    """The one under way first, then in the order of the queue, in which a higher priority overtakes."""
    longer = wish(lane=LONGER, evaluations=10)
    assert forecast(unmade(), longer, ROWS, Making(MAKING.seconds, LONG, 25.0)) == about(45, 47, lane_ready=45)
    queue = unmade(wish(lane=LONG))
    assert forecast(queue, longer, ROWS, MAKING) == about(70, 72, lane_ready=70)
    urgent = wish(lane=LONGER, evaluations=10, priority=1)
    assert forecast(queue, urgent, ROWS, MAKING) == about(40, 42, lane_ready=40)
    queue.lanes[LONG].ready = True
    assert forecast(queue, longer, ROWS, MAKING) == about(40, 42, lane_ready=40), "what is made takes no time"


def test_others_step_while_a_lane_is_made() -> None:
    """For 30 s of their own 40; then all share the device: 50 evaluations of 0.4 s, and the long one's are done."""
    busy = unmade(wish(evaluations=200))
    assert forecast(busy, wish(lane=LONG, evaluations=50), ROWS, MAKING) == about(30, 30 + 50 * 0.4, lane_ready=30)
    waiting = unmade(wish(lane=LONG, evaluations=50))
    assert forecast(waiting, wish(evaluations=200), ROWS, MAKING) == about(0, 30 + 50 * 0.4), (
        "the same, from the other side"
    )
