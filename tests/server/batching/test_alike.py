"""Forecasts that are kept as long as nothing has changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.batching.alike import _MOST, Alike
from server.batching.batcher import Batcher
from server.batching.forecast import Forecast
from server.batching.making import Making
from server.job import Job
from server.pace.pace import Pace
from server.wish import LaneKey
from tests.support.jobs import idle_job, wish

LANE, LONG = LaneKey(8, 8, 1), LaneKey(8, 8, 2)


def full() -> Batcher:
    batcher = Batcher([LANE], 2)
    for _ in range(3):
        batcher.add(idle_job(wish(LANE, 10)))
    while batcher.seat_next():
        pass
    return batcher


def asks(alike: Alike, batcher: Batcher, job: Job | None = None, margin: float = 1.0) -> Forecast:
    return alike.forecast(
        batcher, job or idle_job(wish(LANE, 10)), Pace({LANE: 0.1, LONG: 0.1}), 0.0, margin, None, None
    )


def test_who_is_alike_has_the_same_forecast_and_nobody_else() -> None:
    alike, batcher = Alike(), full()
    first = asks(alike, batcher)
    assert asks(alike, batcher) is first
    other = idle_job(wish(LANE, 10))
    other.caller = "other"
    due = idle_job(wish(LANE, 10))
    due.deadline = 99.0
    for job in (
        idle_job(wish(LANE, 11)),
        idle_job(wish(LANE, 10, rows=1)),
        idle_job(wish(LANE, 10, images=2)),
        other,
        due,
    ):
        assert asks(alike, batcher, job) is not first
    assert asks(alike, batcher, margin=1.1) is not first


CHANGES: dict[str, Callable[[Batcher], object]] = {
    "comes": lambda batcher: batcher.add(idle_job(wish(LANE, 10))),
    "goes": lambda batcher: batcher.drop([batcher.seated[0].job]),
    "finishes": lambda batcher: batcher.finish(LANE, 0),
    "steps": lambda batcher: batcher.next_step(0.0, lambda lane: 1.0, lambda lane, rows: float(rows)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_played_again_once_something_has_changed(change: str) -> None:
    alike, batcher = Alike(), full()
    first = asks(alike, batcher)
    CHANGES[change](batcher)
    assert asks(alike, batcher) is not first


def test_it_is_played_again_when_somebody_sits_down_and_when_a_picture_is_decoded() -> None:
    alike, batcher = Alike(), full()
    batcher.finish(LANE, 0)
    before = asks(alike, batcher)
    assert batcher.seat_next()
    seated = asks(alike, batcher)
    batcher.decoding(batcher.undecoded[0])
    assert before is not seated and asks(alike, batcher) is not seated


def test_while_a_lane_is_made_nothing_is_kept() -> None:
    """Its time goes by though nothing changes. A lane that nobody waits for, one that cannot be made, is no reason."""
    alike, batcher = Alike(), full()
    batcher.open(LONG)
    assert asks(alike, batcher) is asks(alike, batcher)
    batcher.add(idle_job(wish(LONG, 10)))
    assert asks(alike, batcher) is not asks(alike, batcher)


def test_who_comes_again_when_a_lane_is_made_is_told_of_no_making() -> None:
    """He was refused for it, so that nothing has changed since, and was told to come again."""
    alike, batcher = Alike(), Batcher([LANE], 2)
    batcher.open(LONG)
    job = idle_job(wish(LONG, 10))

    def ready() -> float:
        making = Making({LONG: 60.0}, LONG)
        return alike.forecast(batcher, job, Pace({LANE: 0.1, LONG: 0.1}), 0.0, 1.0, making, None).lane_ready

    assert ready() == 60.0
    batcher.lanes[LONG].ready = True
    assert ready() == 0.0


def test_of_requests_that_are_not_alike_a_bounded_number_is_kept() -> None:
    alike, batcher = Alike(), full()
    for priority in range(3 * _MOST):
        asks(alike, batcher, idle_job(wish(LANE, 10, priority=-priority)))
    assert 0 < len(alike._kept) <= _MOST
