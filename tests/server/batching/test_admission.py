"""Who is let in: numbers in, an error or nothing out."""

from __future__ import annotations

import pytest

from server.batching.admission import Admission
from server.batching.batcher import Batcher
from server.batching.forecast import Making
from server.errors import Busy, NotMade, TooLate
from server.wish import LaneKey
from tests.support.jobs import idle_job, wish

LANE = LaneKey(8, 8, 1)
ROW = {LANE: 0.1}  # seconds: a guided picture of ten evaluations takes two
NOW = 1000.0


def busy(jobs: int, seats: int = 1, **fields) -> Batcher:
    """One job in each seat, the others wait."""
    batcher = Batcher([LANE], seats)
    for _ in range(jobs):
        batcher.add(idle_job(wish(evaluations=10, **fields)))
    while batcher.seat_next():
        pass
    return batcher


def test_an_idle_server_lets_in() -> None:
    Admission().check(wish(evaluations=10), busy(0), ROW, NOW, None)
    Admission().check(wish(evaluations=10), busy(0), ROW, NOW, NOW + 2.1)


def test_a_full_queue_says_when_to_ask_again() -> None:
    admission = Admission(queue_jobs=2)
    admission.check(wish(evaluations=10), busy(2), ROW, NOW, None)
    with pytest.raises(Busy, match=r"^2 requests are waiting; at most 2 may$") as refused:
        admission.check(wish(evaluations=10), busy(3), ROW, NOW, None)
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert refused.value.retry_after == pytest.approx(3.0)  # half of what it would wait


def test_the_queue_counts_requests_not_pictures() -> None:
    Admission(queue_jobs=2).check(wish(), busy(1, images=8), ROW, NOW, None)


def test_a_wait_beyond_the_limit_is_refused_now() -> None:
    admission = Admission(queue_seconds=5)
    admission.check(wish(), busy(2), ROW, NOW, None)  # 4 s
    with pytest.raises(Busy, match=r"in about 6 s; at most 5 s are waited") as refused:
        admission.check(wish(), busy(3), ROW, NOW, None)
    assert refused.value.retry_after == pytest.approx(1.0)


def test_a_long_request_on_an_idle_server_waits_for_nobody() -> None:
    Admission(queue_seconds=5).check(wish(evaluations=10, images=8), busy(0), ROW, NOW, None)


def test_a_deadline_that_cannot_be_met_alone_is_too_late() -> None:
    with pytest.raises(TooLate, match=r"takes about 2.00 s by itself; its deadline is in 1.50 s") as refused:
        Admission().check(wish(evaluations=10), busy(0), ROW, NOW, NOW + 1.5)
    assert refused.value.code == "DEADLINE_EXCEEDED"


def test_a_deadline_that_the_load_makes_impossible_is_busy() -> None:
    with pytest.raises(Busy, match=r"would finish in about 4.00 s; its deadline is in 3.00 s") as refused:
        Admission().check(wish(evaluations=10), busy(1), ROW, NOW, NOW + 3)
    assert refused.value.retry_after == pytest.approx(1.0)
    Admission().check(wish(evaluations=10), busy(1), ROW, NOW, NOW + 4.1)


def test_a_deadline_that_has_passed_is_too_late_however_full_it_is() -> None:
    for deadline in (NOW - 1, NOW):
        with pytest.raises(TooLate, match="had passed"):
            Admission(queue_jobs=1).check(wish(), busy(9), ROW, NOW, deadline)


LONG = LaneKey(8, 8, 2)
ROWS = {**ROW, LONG: 0.1}


def opened(jobs: int = 0) -> Batcher:
    batcher = busy(jobs)
    batcher.open(LONG)
    return batcher


def test_a_lane_that_is_not_made_in_time_is_told_and_when_it_is() -> None:
    """Load has nothing to do with it, and asking again helps: RESOURCE_EXHAUSTED, with when."""
    long, making = wish(lane=LONG, evaluations=10), Making({LONG: 60.0})
    Admission().check(long, opened(), ROWS, NOW, NOW + 62.1, making)
    told = "^the engine for 8x8 and a prompt of 2 chunks is being made, for about 60 s more; .* deadline is in 10.00 s$"
    with pytest.raises(NotMade, match=told) as refused:
        Admission().check(long, opened(), ROWS, NOW, NOW + 10, making)
    assert refused.value.code == "RESOURCE_EXHAUSTED" and refused.value.retry_after == pytest.approx(52.0)
    Admission().check(long, opened(), ROWS, NOW, NOW + 10, Making({LONG: 60.0}, LONG, done=53.0))
    Admission().check(long, opened(), ROWS, NOW, NOW + 10, Making())  # of what nothing is known nothing is said
    with pytest.raises(TooLate, match="takes about 2.00 s by itself"):
        Admission().check(long, opened(), ROWS, NOW, NOW + 1, making)


def test_a_deadline_that_the_load_breaks_is_busy_though_the_lane_is_not_made() -> None:
    queue = opened()
    queue.add(idle_job(wish(lane=LONG, evaluations=10)))
    with pytest.raises(Busy, match=r"would finish in about 9.00 s; its deadline is in 8.00 s") as refused:
        Admission().check(wish(lane=LONG, evaluations=10), queue, ROWS, NOW, NOW + 8, Making({LONG: 5.0}))
    assert not isinstance(refused.value, NotMade)


def test_the_making_of_a_lane_is_no_queue() -> None:
    """Else the first long prompt would be refused for ever."""
    long, making = wish(lane=LONG, evaluations=10), Making({LONG: 500.0})
    Admission(queue_seconds=5).check(long, opened(), ROWS, NOW, None, making)
    queue = opened()
    for _ in range(3):
        queue.add(idle_job(long))
    with pytest.raises(Busy, match=r"in about 506 s; at most 5 s are waited") as refused:
        Admission(queue_seconds=5).check(long, queue, ROWS, NOW, None, making)
    assert refused.value.retry_after == pytest.approx(1.0)
