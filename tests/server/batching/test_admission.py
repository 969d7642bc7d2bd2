"""Who is let in: numbers in, an error or nothing out."""

from __future__ import annotations

import pytest

from server.batching.admission import Admission, Reading
from server.batching.batcher import Batcher
from server.batching.forecast import Forecast, remaining
from server.batching.making import Making
from server.errors import Busy, NotMade, TooLate
from server.pace.pace import Pace
from server.wish import LaneKey
from tests.support.jobs import idle_job, wish

LANE, LONG = LaneKey(8, 8, 1), LaneKey(8, 8, 2)
PACE = Pace({LANE: 0.1, LONG: 0.1})  # seconds a row: a guided picture of ten evaluations takes two
NOW = 1000.0
TEN = {"evaluations": 10}


def busy(jobs: int, seats: int = 1, **fields) -> Batcher:
    """One job in each seat, the others wait."""
    batcher = Batcher([LANE], seats)
    for _ in range(jobs):
        batcher.add(idle_job(wish(evaluations=10, **fields)))
    while batcher.seat_next():
        pass
    return batcher


def check(
    batcher: Batcher,
    seconds: float | None = None,
    admission: Admission | None = None,
    margin: float = 1.0,
    making: Making | None = None,
    pace: Pace = PACE,
    reading: Reading | None = None,
    **fields,
) -> Forecast:
    """Ask for a job with a deadline so many seconds from NOW."""
    job = idle_job(wish(**fields))
    job.deadline = None if seconds is None else NOW + seconds
    return (admission or Admission()).check(job, batcher, pace, NOW, margin, making, reading=reading)


def test_an_idle_server_lets_in_and_says_when_it_will_be_done() -> None:
    assert check(busy(0), **TEN).finish == check(busy(0), 2.1, **TEN).finish == pytest.approx(2)


def test_a_full_queue_says_when_to_ask_again() -> None:
    admission = Admission(queue_jobs=2)
    check(busy(2), admission=admission, **TEN)
    with pytest.raises(Busy, match=r"^2 requests are waiting; at most 2 may$") as refused:
        check(busy(3), admission=admission, **TEN)
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert refused.value.retry_after == pytest.approx(3.0)  # half of what it would wait


def test_the_queue_counts_requests_not_pictures() -> None:
    check(busy(1, images=8), admission=Admission(queue_jobs=2))


def test_a_wait_beyond_the_limit_is_refused_now() -> None:
    admission = Admission(queue_seconds=5)
    check(busy(2), admission=admission)  # 4 s
    with pytest.raises(Busy, match=r"in about 6 s; at most 5 s are waited") as refused:
        check(busy(3), admission=admission)
    assert refused.value.retry_after == pytest.approx(1.0)


def test_a_wait_for_the_decoder_is_a_wait() -> None:
    """What is finished and not decoded was seen by no limit."""
    slow, crowd = Pace({LANE: 0.1}), busy(4, seats=4)
    slow.decoded((8, 8), 3.0)
    for seat in range(4):
        crowd.finish(LANE, seat)
    crowd.add(idle_job(wish(**TEN)))
    with pytest.raises(Busy, match=r"in about 3 s; at most 1 s are waited"):
        check(crowd, admission=Admission(queue_seconds=1), pace=slow)


def test_a_long_request_on_an_idle_server_waits_for_nobody() -> None:
    check(busy(0), admission=Admission(queue_seconds=5), images=8, **TEN)


def test_a_deadline_that_cannot_be_met_alone_is_too_late() -> None:
    with pytest.raises(TooLate, match=r"takes about 2.00 s by itself; its deadline is in 1.50 s") as refused:
        check(busy(1), 1.5, **TEN)
    assert refused.value.code == "DEADLINE_EXCEEDED"


def test_by_itself_means_with_its_decodes_and_files() -> None:
    costly = Pace({LANE: 0.1})
    costly.decoded((8, 8), 0.5)
    costly.written((8, 8), "png", 0.25)
    with pytest.raises(TooLate, match=r"takes about 5.25 s by itself; its deadline is in 5.00 s"):
        check(busy(1), 5.0, images=2, pace=costly, **TEN)


@pytest.mark.parametrize("row", [0.1, 10.0, 1e6])
def test_an_idle_device_tries_whatever_the_forecast_says(row: float) -> None:
    """Only a try can show that the pace is wrong: nothing steps, so nothing else would correct it."""
    wrong = Pace({LANE: row, LONG: row})
    check(busy(0), 0.01, pace=wrong, margin=2.0, **TEN)
    check(opened(), 0.01, pace=wrong, lane=LONG, **TEN)
    for not_idle in (busy(1), finished()):
        with pytest.raises(TooLate, match="by itself"):
            check(not_idle, 0.01, Admission(queue_seconds=1e9), pace=wrong, **TEN)


def finished() -> Batcher:
    """One picture waits for the decoder."""
    batcher = busy(1)
    batcher.finish(LANE, 0)
    return batcher


def test_pictures_that_are_read_before_it_joins_count_and_the_margin_is_of_the_rest() -> None:
    reading = Reading(wait=4.0, takes=1.0)
    check(busy(1), 10.9, reading=reading, margin=1.4, **TEN)
    with pytest.raises(Busy, match=r"would finish in about 10.60 s; its deadline is in 10.50 s") as refused:
        check(busy(1), 10.5, reading=reading, margin=1.4, **TEN)
    assert refused.value.retry_after == pytest.approx(0.1)
    with pytest.raises(TooLate, match=r"takes about 3.00 s by itself; its deadline is in 2.90 s"):
        check(busy(0), 2.9, reading=reading, **TEN)
    check(busy(1), None, Admission(queue_seconds=3), reading=reading, **TEN)


def test_a_judge_counts_once_it_has_seen_pictures_and_those_that_wait_for_it() -> None:
    """Two pictures are drawn in 2 s each, and judged in 3 s each."""
    slow = Pace({LANE: 0.1})
    slow.judged(3.0)
    chosen = {"images": 2, "keep": 1, **TEN}
    assert check(busy(0), pace=slow, **chosen).finish == pytest.approx(2 + 3 + 3)
    assert check(busy(0), pace=slow, images=2, **TEN).finish == pytest.approx(4)
    slow.unjudged = 4
    assert check(busy(0), pace=slow, **chosen).finish == pytest.approx(12 + 3 + 3)
    with pytest.raises(TooLate, match=r"takes about 7.00 s by itself; its deadline is in 6.00 s"):
        check(busy(1), 6.0, pace=slow, **chosen)


def test_a_stall_and_a_step_100_times_slower_refuse_nothing() -> None:
    """A process that was stopped for 20 s; a deadline of 3 s and 12 steps that take 0.14 s."""
    pace = Pace({LANE: 0.139 / 24})
    for stall in (20.0, 0.6, 3.0):
        pace.stepped(LANE, 2, 0.0116, NOW)
        pace.stepped(LANE, 2, stall, NOW)
        check(busy(0), 3.0, pace=pace, evaluations=12)
        check(busy(1), 3.0, pace=pace, evaluations=12)


def test_a_deadline_that_the_load_makes_impossible_is_busy() -> None:
    with pytest.raises(Busy, match=r"would finish in about 4.00 s; its deadline is in 3.00 s") as refused:
        check(busy(1), 3, **TEN)
    assert refused.value.retry_after == pytest.approx(1.0)
    check(busy(1), 4.1, **TEN)


def test_the_forecast_is_multiplied_by_the_margin() -> None:
    with pytest.raises(Busy, match=r"would finish in about 4.80 s; its deadline is in 4.10 s") as refused:
        check(busy(1), 4.1, margin=1.2, **TEN)
    assert refused.value.retry_after == pytest.approx(0.7)
    check(busy(1), 4.9, margin=1.2, **TEN)


def test_who_would_make_others_late_is_refused_if_it_has_a_deadline_itself() -> None:
    """Without one it is admitted, and waits for its seat."""
    admitted = idle_job(wish(**TEN))
    admitted.deadline = NOW + 3.9
    beside = Batcher([LANE], 2)
    beside.add(admitted)
    assert beside.seat_next()
    with pytest.raises(Busy, match="^1 request that was admitted before would miss its deadline$") as refused:
        check(beside, 60, **TEN)
    assert refused.value.code == "RESOURCE_EXHAUSTED" and refused.value.retry_after == pytest.approx(4.0)
    check(beside, **TEN)


def test_a_deadline_that_has_passed_is_too_late_however_full_it_is() -> None:
    for seconds in (-1, 0):
        with pytest.raises(TooLate, match="had passed"):
            check(busy(9), seconds, Admission(queue_jobs=1))


def opened(jobs: int = 0) -> Batcher:
    batcher = busy(jobs)
    batcher.open(LONG)
    return batcher


def test_a_lane_that_is_not_made_in_time_is_told_and_when_it_is() -> None:
    """Load has nothing to do with it, and asking again helps: RESOURCE_EXHAUSTED, with when."""
    long, making = {"lane": LONG, **TEN}, Making({LONG: 60.0})
    check(opened(), 62.1, making=making, **long)
    told = "^the engine for 8x8 and a prompt of 2 chunks is being made, for about 60 s more; .* deadline is in 10.00 s$"
    for queue in (opened(), opened(1)):
        with pytest.raises(NotMade, match=told) as refused:
            check(queue, 10, making=making, **long)
        assert refused.value.code == "RESOURCE_EXHAUSTED" and refused.value.retry_after >= 52 - 1e-9
    check(opened(), 10, making=Making({LONG: 60.0}, LONG, done=53.0), **long)
    check(opened(), 10, making=Making(), **long)  # of what nothing is known nothing is said
    with pytest.raises(TooLate, match="takes about 2.00 s by itself"):
        check(opened(1), 1, making=making, **long)


def test_a_deadline_that_the_load_breaks_is_busy_though_the_lane_is_not_made() -> None:
    queue = opened()
    queue.add(idle_job(wish(lane=LONG, evaluations=10)))
    with pytest.raises(Busy, match=r"would finish in about 9.00 s; its deadline is in 8.00 s") as refused:
        check(queue, 8, making=Making({LONG: 5.0}), lane=LONG, **TEN)
    assert not isinstance(refused.value, NotMade)


def test_the_making_of_a_lane_is_no_queue() -> None:
    """Else the first long prompt would be refused for ever."""
    long, making = {"lane": LONG, **TEN}, Making({LONG: 500.0})
    check(opened(), admission=Admission(queue_seconds=5), making=making, **long)
    queue = opened()
    for _ in range(3):
        queue.add(idle_job(wish(**long)))
    with pytest.raises(Busy, match=r"in about 506 s; at most 5 s are waited") as refused:
        check(queue, admission=Admission(queue_seconds=5), making=making, **long)
    assert refused.value.retry_after == pytest.approx(1.0)


def test_another_models_requests_come_first() -> None:
    """While it is drained: they are a wait as any, for the queue's bound and for deadlines, also of the first here."""

    def asked(seconds: float | None, before: float, admission: Admission) -> Forecast:
        job = idle_job(wish(**TEN))
        job.deadline = None if seconds is None else NOW + seconds
        return admission.check(job, busy(0), PACE, NOW, before=before)

    admission = Admission(queue_seconds=5.0)
    assert asked(None, 5.0, admission).finish == pytest.approx(2), "its own forecast is what it takes itself"
    with pytest.raises(Busy, match=r"a seat would be free in about 5 s; at most 5 s are waited"):
        asked(None, 5.1, admission)
    assert asked(6.1, 4.0, admission)
    with pytest.raises(Busy, match=r"would finish in about 6\.00 s; its deadline is in 5\.90 s"):
        asked(5.9, 4.0, admission)
    with pytest.raises(TooLate, match=r"takes about 2\.00 s by itself"):
        asked(1.9, 4.0, admission)


def test_what_is_left_is_counted_with_full_seats() -> None:
    batcher = busy(3, seats=2)
    pace = Pace({LANE: 0.1})
    assert remaining(batcher, pace) == pytest.approx(3 * 2.0), "on a CPU a row is a row"
    pace.decoded((8, 8), 0.5)
    pace.stepped(LANE, 4, 0.1, NOW)  # a batch of four takes as long as one row did
    assert remaining(batcher, pace) == pytest.approx(3 * 20 * 0.1 / 4 + 3 * 0.5)
    assert remaining(busy(0), pace) == 0
