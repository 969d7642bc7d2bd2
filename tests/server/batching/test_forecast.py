"""The future of seats and queue, against sums done by hand."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from pipeline.conditions.interval import Interval
from server.batching.batcher import Batcher
from server.batching.demand import Demand
from server.batching.forecast import Forecast, endangers, outlook
from server.batching.forecast import forecast as forecast_job
from server.batching.making import Making
from server.batching.play import Play
from server.job import Job, Picture
from server.pace.pace import Pace
from server.wish import LaneKey, Wish
from tests.support.jobs import idle_job, wish

SMALL, LARGE = LaneKey(8, 8, 1), LaneKey(16, 8, 1)
LONG, LONGER = LaneKey(8, 8, 2), LaneKey(8, 8, 3)
MAKING = Making({LONG: 30.0, LONGER: 40.0})
NOW = 1000.0


def pace(chunk: float = 0.0, decode: float = 0.0, file: float = 0.0) -> Pace:
    """A row takes 0.1 s, of the large lane 0.5; nothing else takes any time, unless it is said."""
    made = Pace({SMALL: 0.1, LARGE: 0.5, LONG: 0.1, LONGER: 0.1})
    made.encoded(1, chunk)
    for size in ((8, 8), (16, 8)):
        made.decoded(size, decode)
        made.written(size, "png", file)
    return made


PACE = pace()


def batcher(*jobs: Job | Wish, seats: int = 1, unmade: bool = False) -> Batcher:
    """With these jobs seated as far as they can be. `unmade`: with lanes of long prompts that are yet to be made."""
    made = Batcher([SMALL, LARGE], seats)
    for key in (LONG, LONGER) if unmade else ():
        made.open(key)
    for job in jobs:
        made.add(job if isinstance(job, Job) else idle_job(job))
    while made.seat_next():
        pass
    return made


def due(seconds: float, **fields) -> Job:
    """A job with a deadline so many seconds from NOW."""
    job = idle_job(wish(**fields))
    job.deadline = NOW + seconds
    return job


def forecast(batcher: Batcher, asked: Wish, making: Making | None = None, at: Pace = PACE) -> Forecast:
    return forecast_job(batcher, idle_job(asked), at, NOW, making=making)


def about(wait: float, finish: float, lane_ready: float = 0.0) -> Forecast:
    return Forecast(pytest.approx(wait), pytest.approx(finish), pytest.approx(lane_ready), ())


def test_an_idle_server_takes_evaluations_times_rows() -> None:
    assert forecast(batcher(), wish(evaluations=10)) == about(0, 2)
    assert forecast(batcher(), wish(evaluations=10, rows=1)) == about(0, 1)
    assert forecast(batcher(), wish(lane=LARGE, evaluations=10)) == about(0, 10)


def test_a_guided_interval_costs_its_rows() -> None:
    """Of ten evaluations five take two rows; who sits takes one once it has had those."""
    half = Interval(0.0, 0.5)
    assert forecast(batcher(), wish(evaluations=10, interval=half)) == about(0, 1.5)
    seated = batcher(wish(evaluations=10, interval=half))
    seated.seated[0].reached = 4
    assert seated.rows_live == 2
    seated.seated[0].reached = 5
    assert seated.rows_live == 1


def test_seats_do_not_drain() -> None:
    """Who sits is done after three evaluations; others will have come by then."""
    assert forecast(batcher(wish(evaluations=3), seats=2), wish(evaluations=10)) == about(0, 10 * 0.4)


def test_no_step_takes_more_rows_than_there_are_seats() -> None:
    full = batcher(*[wish(evaluations=6)] * 8, seats=2)
    assert forecast(full, wish(evaluations=6)) == about(4 * 6 * 0.4, 5 * 6 * 0.4)
    mixed = batcher(wish(evaluations=6, rows=1), wish(evaluations=6), wish(evaluations=6, rows=1), seats=2)
    assert forecast(mixed, wish(evaluations=6)) == about(6 * 0.3, 13 * 0.3), "six rows for four pictures"


def test_what_has_been_done_of_a_seat_is_not_counted_again() -> None:
    seated = batcher(wish(evaluations=10))
    seated.seated[0].reached = 9
    assert forecast(seated, wish(evaluations=5)) == about(0.2, 0.2 + 1.0)


def test_who_waits_before_it_is_waited_for() -> None:
    queue = batcher(wish(evaluations=10), wish(evaluations=5))
    assert forecast(queue, wish(evaluations=1)) == about(2 + 1, 2 + 1 + 0.2)


def test_a_higher_priority_overtakes_the_queue_and_the_seats() -> None:
    queue = batcher(wish(evaluations=10), wish(evaluations=5))
    assert forecast(queue, wish(evaluations=1, priority=1)) == about(0, 0.2)


def flood(pictures: int, seats: int, evaluations: int = 100) -> Batcher:
    """One caller has all seats, and more that wait."""
    job = idle_job(wish(evaluations=evaluations, images=pictures))
    job.caller = "flood"
    return batcher(job, seats=seats)


def test_another_callers_flood_is_no_queue() -> None:
    """It sits at once, in a seat of the flood's, and has half of the time: as many rows as it has itself."""
    assert forecast(flood(8, seats=4), wish(evaluations=10)) == about(0, 10 * 2 * 0.2)
    assert forecast(flood(8, seats=4), wish(evaluations=10, images=2)) == about(0, 11 * 2 * 0.4), (
        "a step lies between its decodes"
    )
    mine = forecast(flood(8, seats=4), wish(evaluations=10, priority=1))
    assert mine == about(0, 10 * 0.2), "alone"


@pytest.mark.parametrize("weight", [0.1, 0.5, 2.0, 10.0])
def test_a_weight_is_a_share_of_what_is_forecast(weight: float) -> None:
    """Its ten evaluations take 2 s of the device, and the flood of weight 1 has a part of the time for each of them."""
    job = idle_job(wish(evaluations=10))
    job.caller, job.weight = "key:other", weight
    beside = forecast_job(flood(8, seats=4), job, PACE, NOW)
    assert beside.finish == pytest.approx(2 * (weight + 1) / weight, rel=0.03), "steps are whole"
    job.deadline = NOW + 99
    demand = Demand()
    demand.note("key:third", 0, 1e6, NOW, weight=3.0)
    beside = forecast_job(flood(8, seats=4), job, PACE, NOW, demand=demand)
    assert beside.finish == pytest.approx(2 * (weight + 1 + 3) / weight, rel=0.03), "who may come again has a part too"


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_what_is_reckoned_has_weights_too(weight: float) -> None:
    """Two floods of a thousand pictures, of one seat each: when the heavier one is done."""
    sides = [idle_job(wish(evaluations=10, images=1000)) for _ in range(2)]
    for job, caller, each in zip(sides, ("key:a", "key:b"), (1.0, weight), strict=True):
        job.caller, job.weight, job.deadline = caller, each, NOW + 1e9
    crowd = batcher(*sides, seats=2)
    ends = Play(crowd, PACE, crowd.waiting, now=NOW, full=True).played.finished
    assert min(ends.values()) == pytest.approx(1000 * 10 * 0.2 * (1 + weight) / max(1.0, weight))
    assert min(ends, key=ends.__getitem__).weight == max(1.0, weight)


def test_a_flood_is_slower_for_the_sake_of_others() -> None:
    """Three of its pictures are left to it, with half of the time; before the fourth sits down again they are done."""
    late = due(99, evaluations=10, images=4)
    late.caller = "flood"
    crowd = batcher(late, seats=4)
    other = idle_job(wish(evaluations=100))
    ends = Play(crowd, PACE, [Picture(other, 0)]).played.finished
    assert ends == {late: pytest.approx((3 * 10 + 10) * 2 * 0.2)}
    assert Play(crowd, PACE, []).played.finished == {late: pytest.approx(10 * 0.8)}


def test_more_callers_than_seats_share_the_time() -> None:
    crowd = Batcher([SMALL], 2)
    for caller in "ab":
        job = idle_job(wish(evaluations=100))
        job.caller = caller
        crowd.add(job)
        crowd.seat_next()
    assert forecast(crowd, wish(evaluations=10)) == about(0, 10 * 3 * 0.2)


def test_paused_pictures_have_what_they_had_and_bring_no_prompt() -> None:
    job = due(99, evaluations=10, images=2)
    job.unencoded = 1
    crowd = batcher(job, seats=2)
    for picture in crowd.seated:
        picture.reached = 8
    urgent = idle_job(wish(evaluations=5, priority=1))
    crowd.add(urgent)
    assert crowd.seat_next() and crowd.paused_count == 1
    ends = Play(crowd, pace(chunk=7.0), crowd.waiting).played.finished
    assert ends[job] == pytest.approx(5 * 0.2 + 2 * 0.4), "first the urgent one, then both"
    assert outlook(crowd, PACE, NOW).hopeless is None


def test_other_lanes_take_their_turns() -> None:
    busy = batcher(wish(lane=LARGE, evaluations=2))
    assert forecast(busy, wish(evaluations=4)) == about(0, 4 * (1.0 + 0.2))


def test_its_own_pictures_are_no_queue() -> None:
    """Eight pictures on one seat of an idle server take long, but a seat is free at once."""
    assert forecast(batcher(), wish(evaluations=10, images=8)) == about(0, 8 * 2)
    assert forecast(batcher(seats=3), wish(evaluations=10, images=8)) == about(0, 3 * 10 * 0.6)


def test_a_seat_that_has_just_finished_is_free() -> None:
    seated = batcher(wish(evaluations=10), seats=2)
    seated.seated[0].reached = 10  # it is about to leave
    assert forecast(seated, wish(evaluations=5)) == about(0, 5 * 0.4)


def test_a_lone_request_takes_its_prompts_steps_decodes_and_file() -> None:
    """The second and the third picture sit down after a step; then nothing lies between their decodes."""
    job = idle_job(wish(evaluations=10, images=3))
    job.unencoded = 2
    costly = pace(chunk=0.5, decode=0.25, file=0.125)
    alone = forecast_job(batcher(seats=4), job, costly, NOW)
    assert alone == about(0, 2 * 0.5 + 11 * 0.6 + 3 * 0.25 + 0.125)


def test_the_first_picture_of_a_job_alone_brings_its_prompts() -> None:
    """And the others step once before the next one sits down."""
    costly, job = pace(chunk=0.5), idle_job(wish(evaluations=10, images=2))
    job.unencoded = 1
    assert forecast_job(batcher(seats=2), job, costly, NOW) == about(0, 0.5 + 11 * 0.4)
    job.unencoded = 0
    assert forecast_job(batcher(seats=2), job, costly, NOW) == about(0, 10 * 0.4)


def test_who_sits_before_it_is_decoded_before_it() -> None:
    """Two finish at once, and a step lies between their decodes; then its own one."""
    busy = batcher(wish(evaluations=4), wish(evaluations=4), seats=3)
    costly = pace(decode=0.25)
    assert forecast(busy, wish(evaluations=4), at=costly) == about(0, 4 * 0.6 + 3 * 0.25 + 2 * 0.6)
    assert forecast(busy, wish(evaluations=9), at=costly) == about(0, 9 * 0.6 + 3 * 0.25), "beside its own steps"


def test_finished_pictures_wait_for_the_decoder_and_nobody_sits_down_beyond_them() -> None:
    costly = pace(decode=0.25)
    crowd = batcher(wish(evaluations=3), wish(evaluations=3), seats=2)
    for seat in range(2):
        crowd.finish(SMALL, seat)
    assert crowd.crowded and crowd.waiting_count == 0 and not crowd.empty
    # A decode makes room, among steps of those who will have come; then four steps of its own, one beside a decode.
    assert forecast(crowd, wish(evaluations=4), at=costly) == about(0.2 + 0.25, 0.2 + 0.25 + 4 * 0.2 + 2 * 0.25)
    crowd.decoding(crowd.undecoded[0])
    assert forecast(crowd, wish(evaluations=4), at=costly) == about(0, 4 * 0.2 + 2 * 0.25)


def test_pictures_of_one_step_are_bounded_by_the_decoder() -> None:
    """As few-step models are served: eight of them on two seats take eight decodes, whatever the steps."""
    job = due(99, evaluations=1, images=8)
    ends = Play(batcher(seats=2), pace(decode=1.0), [Picture(job, index) for index in range(8)]).played.finished
    assert ends == {job: pytest.approx(8 * 1.0 + 4 * 0.4)}


def test_the_deadlines_that_it_breaks_are_listed_with_their_ends() -> None:
    """Alone it would be done in 2 s, beside another one in 4 s."""
    other = due(3.9, evaluations=10)
    assert forecast(batcher(other, seats=2), wish(evaluations=10)).breaks == (pytest.approx(4.0),)
    assert forecast(batcher(other, seats=1), wish(evaluations=10)).breaks == (), "it waits"
    assert forecast(batcher(due(4.1, evaluations=10), seats=2), wish(evaluations=10)).breaks == ()
    assert forecast(batcher(due(1.9, evaluations=10), seats=2), wish(evaluations=10)).breaks == (), (
        "late without it too"
    )


def test_a_margin_makes_the_others_ends_later() -> None:
    beside = batcher(due(4.1, evaluations=10), seats=2)
    job = idle_job(wish(evaluations=10))
    assert forecast_job(beside, job, PACE, NOW, margin=1.1).breaks == (pytest.approx(4.0),)


def test_a_higher_priority_breaks_the_deadlines_of_those_that_wait() -> None:
    queue = batcher(wish(evaluations=10), due(4.5, evaluations=10))
    assert forecast(queue, wish(evaluations=10)).breaks == ()
    assert forecast(queue, wish(evaluations=10, priority=1)).breaks == (pytest.approx(6.0),)


def sits_down(asked: Wish, *seated: Job, seats: int = 3) -> bool:
    return not endangers(batcher(*seated, seats=seats), Picture(idle_job(asked), 0), PACE, NOW)


def test_nobody_sits_down_who_makes_a_seated_deadline_be_missed() -> None:
    asked = wish(evaluations=10)
    assert sits_down(asked) and sits_down(asked, idle_job(asked))
    assert sits_down(asked, due(4.1, evaluations=10)) and not sits_down(asked, due(3.9, evaluations=10))
    assert sits_down(asked, due(1.9, evaluations=10)), "that one is late anyway"
    assert sits_down(wish(evaluations=1), due(2.3, evaluations=10)), "and leaves soon"
    assert sits_down(wish(evaluations=10, rows=1), due(3.1, evaluations=10))


def test_a_jobs_own_pictures_endanger_nothing() -> None:
    """Else the others of its pictures could never sit down, and it would be late for certain."""
    job = due(3.0, evaluations=10, images=2)
    queue = Batcher([SMALL], 2)
    queue.add(job)
    assert queue.seat_next()
    assert not endangers(queue, queue.waiting[0], PACE, NOW)


def gives_up(*jobs: Job, seats: int = 2) -> int | None:
    """Which of the jobs is hopeless."""
    seen = outlook(batcher(*jobs, seats=seats), PACE, NOW)
    return None if seen.hopeless is None else jobs.index(seen.hopeless)


def test_who_cannot_make_it_even_if_nobody_else_comes_is_hopeless() -> None:
    """Three evaluations beside the other one, seven alone."""
    other = idle_job(wish(evaluations=3))
    least = 3 * 0.4 + 7 * 0.2
    assert gives_up(due(least + 0.01, evaluations=10), other) is None
    assert gives_up(due(least - 0.01, evaluations=10), other) == 0
    seen = outlook(batcher(due(least - 0.01, evaluations=10), other, seats=2), PACE, NOW)
    assert (seen.left, seen.spare) == (pytest.approx(least), 0)
    assert outlook(batcher(due(5, evaluations=10), other, seats=2), PACE, NOW).spare == pytest.approx(5 - least)


def test_the_last_one_is_never_given_up() -> None:
    """Only a try can show that the pace is wrong."""
    assert gives_up(due(0.1, evaluations=10)) is None
    assert gives_up(due(0.1, evaluations=10, images=5)) is None
    assert gives_up(due(0.1, evaluations=10), idle_job(wish())) == 0


def test_who_waits_is_hoped_to_be_alone_once_it_sits() -> None:
    """Those behind it may be made to wait for its sake."""
    others = [idle_job(wish(evaluations=10)), idle_job(wish(evaluations=10))]
    queue = Batcher([SMALL], 3)
    for job in (late := due(1.9, evaluations=10), *others):
        queue.add(job)
    assert outlook(queue, PACE, NOW).hopeless is late
    late.deadline = NOW + 2.1
    assert outlook(queue, PACE, NOW).hopeless is None


def test_of_those_who_sit_the_latest_goes_first_and_then_the_first_who_waits() -> None:
    assert gives_up(due(3.5, evaluations=10), due(1.0, evaluations=10)) == 1
    assert gives_up(due(9, evaluations=10), due(9, evaluations=10), due(5, evaluations=10), due(1, evaluations=10)) == 2
    assert gives_up(due(3.5, evaluations=10), due(9, evaluations=10), due(1, evaluations=10)) == 0
    assert gives_up(idle_job(wish(evaluations=99)), idle_job(wish(evaluations=99))) is None


def unmade(*jobs: Wish, seats: int = 1) -> Batcher:
    return batcher(*jobs, seats=seats, unmade=True)


def test_a_lane_is_made_before_anybody_sits_in_it() -> None:
    long = wish(lane=LONG, evaluations=10)
    assert forecast(unmade(), long, MAKING) == about(30, 30 + 2, lane_ready=30)
    assert forecast(unmade(), long, Making()) == about(0, 2), "nothing is known of it"
    assert forecast(unmade(), wish(evaluations=10), MAKING) == about(0, 2), "others do not wait for it"
    queue = unmade(wish(lane=LONG, evaluations=5))
    assert forecast(queue, long, MAKING) == about(30 + 1, 30 + 1 + 2, lane_ready=30), "both wait, one after the other"


def test_a_lane_that_is_being_made_has_had_some_of_its_time() -> None:
    under_way = Making(MAKING.seconds, LONG, done=20.0)
    assert forecast(unmade(), wish(lane=LONG, evaluations=10), under_way) == about(10, 12, lane_ready=10)
    overdue = dataclasses.replace(under_way, done=99.0)
    assert forecast(unmade(), wish(lane=LONG, evaluations=10), overdue) == about(0, 2)


def test_lanes_are_made_one_after_the_other() -> None:
    """The one under way first, then in the order of the queue, in which a higher priority overtakes."""
    longer = wish(lane=LONGER, evaluations=10)
    assert forecast(unmade(), longer, Making(MAKING.seconds, LONG, 25.0)) == about(45, 47, lane_ready=45)
    queue = unmade(wish(lane=LONG, evaluations=5))
    late = forecast(queue, longer, MAKING)
    assert (late.wait, late.lane_ready) == (pytest.approx(70), pytest.approx(70))
    urgent = wish(lane=LONGER, evaluations=10, priority=1)
    assert forecast(queue, urgent, MAKING).lane_ready == pytest.approx(40)
    queue.lanes[LONG].ready = True
    assert forecast(queue, longer, MAKING).lane_ready == pytest.approx(40), "what is made takes no time"


def test_others_step_while_a_lane_is_made() -> None:
    """Half an hour of their steps does not hold it up; from then on, and before, a step is one of both lanes."""
    busy = unmade(wish(evaluations=2000))
    got = forecast(busy, wish(lane=LONG, evaluations=50), MAKING)
    assert got.wait == pytest.approx(30, abs=0.4) and got.finish == pytest.approx(got.wait + 50 * 0.4)


def crowd(draw: random.Random, callers: int, jobs: int, seats: int) -> Batcher:
    """Jobs of random lengths, numbers of pictures and prompts, of so many callers."""
    made = Batcher([SMALL], seats)
    for _ in range(jobs):
        job = idle_job(wish(evaluations=draw.choice((4, 12, 20, 30)), images=draw.choice((1, 2, 8))))
        job.caller, job.unencoded = f"caller {draw.randrange(callers)}", draw.choice((0, 1))
        made.add(job)
    while made.seat_next():
        pass
    return made


@pytest.mark.parametrize("decode", [0.1, 1.0])
@pytest.mark.parametrize("callers", [1, 3, 20])
def test_a_long_queue_is_reckoned_as_it_would_be_played(callers: int, decode: float) -> None:
    """Within a tenth, where a decode takes an eighth of a step or more than one."""
    draw, costly, errors = random.Random(callers), pace(chunk=0.2, decode=decode, file=0.1), []
    for _ in range(6):
        queue = crowd(draw, callers, 60, seats=4)
        job = idle_job(wish(evaluations=12, images=2))
        job.caller, job.deadline = "caller 0", NOW + 1e6
        fields: dict = {"now": NOW, "newcomer": job, "full": True}
        pictures = [*queue.waiting, Picture(job, 0), Picture(job, 1)]
        played = Play(queue, costly, pictures, **fields, changes=math.inf).played
        reckoned = Play(queue, costly, pictures, **fields).played
        errors += [reckoned.seated[job] / played.seated[job] - 1, reckoned.finished[job] / played.finished[job] - 1]
    assert max(map(abs, errors)) < 0.1 and any(errors), errors


def test_a_queue_that_was_not_played_to_its_end_gives_nobody_up() -> None:
    """Nobody is hopeless for what nobody has looked at."""
    jobs = [due(1e9, evaluations=10, images=8) for _ in range(200)]
    queue = batcher(*jobs, seats=2)
    jobs[-1].deadline = NOW + 450.0
    assert outlook(queue, PACE, NOW).hopeless is None
    jobs[5].deadline = NOW + 20.0
    assert outlook(queue, PACE, NOW).hopeless is jobs[5], "what is near is known"
