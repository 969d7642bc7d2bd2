"""Who sits where, without a device: the batcher is played by hand."""

from __future__ import annotations

from server.batching.batcher import Batcher
from server.caller import LOCAL
from server.job import Job
from server.wish import LaneKey
from tests.support.jobs import idle_job, wish

SMALL, LARGE = LaneKey(8, 8, 1), LaneKey(16, 8, 1)
ROW = {SMALL: 1.0, LARGE: 4.0}  # seconds


def seated(batcher: Batcher) -> list[tuple[LaneKey, int, str, int]]:
    """Seats everybody who can be; in the order in which they sat down."""
    placed = []
    while place := batcher.seat_next():
        size, seat, picture, _ = place
        placed.append((size, seat, picture.job.id, picture.index))
    return placed


def next_step(batcher: Batcher, now: float = 0.0) -> tuple[LaneKey, list[int]] | None:
    """A row of the larger lane takes four times as long, and no step has anything for nothing."""
    return batcher.next_step(now, ROW.__getitem__, lambda lane, rows: ROW[lane] * rows)


def add(batcher: Batcher, id: str, caller: str = LOCAL, arrived: float = 0.0, **fields) -> Job:
    job = idle_job(wish(**fields), id)
    job.caller, job.arrived = caller, arrived
    batcher.add(job)
    return job


def test_pictures_sit_in_order_of_arrival_until_the_seats_are_full() -> None:
    batcher = Batcher([SMALL], seats=3)
    add(batcher, "a", images=2)
    add(batcher, "b", images=2)
    assert seated(batcher) == [(SMALL, 0, "a", 0), (SMALL, 1, "a", 1), (SMALL, 2, "b", 0)]
    assert [(p.job.id, p.index) for p in batcher.waiting] == [("b", 1)]
    assert batcher.waiting_count == 1 and batcher.rows_live == 6


def test_a_freed_seat_goes_to_the_first_who_waits() -> None:
    batcher = Batcher([SMALL], seats=2)
    for id in "abcd":
        add(batcher, id)
    seated(batcher)
    batcher.free(SMALL, 1)
    assert seated(batcher) == [(SMALL, 1, "c", 0)]


def test_higher_priority_is_seated_first_and_equals_in_order() -> None:
    batcher = Batcher([SMALL], seats=4)
    add(batcher, "a", priority=-1)
    add(batcher, "b")
    add(batcher, "c", priority=5)
    add(batcher, "d", priority=5)
    assert [batcher.ahead_of(priority) for priority in (-2, -1, 0, 4, 5, 6)] == [4, 4, 3, 2, 2, 0]
    assert [id for _, _, id, _ in seated(batcher)] == ["c", "d", "b", "a"]


def test_nobody_sits_in_a_lane_that_is_not_made_and_it_holds_nobody_up() -> None:
    batcher = Batcher([SMALL], seats=1)
    assert batcher.idle and batcher.unmade is None
    assert batcher.open(LARGE) and not batcher.open(LARGE) and not batcher.open(SMALL)
    add(batcher, "a", lane=LARGE, priority=9)
    assert seated(batcher) == [] and batcher.idle and batcher.unmade == LARGE
    add(batcher, "b", lane=SMALL)
    assert not batcher.idle, "b can sit"
    assert seated(batcher) == [(SMALL, 0, "b", 0)] and not batcher.idle and batcher.unmade == LARGE
    batcher.free(SMALL, 0)
    batcher.lanes[LARGE].ready = True
    assert not batcher.idle and batcher.unmade is None
    assert seated(batcher) == [(LARGE, 0, "a", 0)]


def test_the_lane_of_the_first_who_waits_for_one_is_made_next() -> None:
    batcher = Batcher([SMALL], seats=1)
    lanes = [LaneKey(8, 8, chunks) for chunks in (2, 3, 4)]
    jobs = []
    for lane, priority in zip(lanes, (0, 1, -1), strict=True):
        batcher.open(lane)
        jobs.append(add(batcher, "j", lane=lane, priority=priority))
    order = []
    for job in (jobs[1], jobs[0], jobs[2]):
        order.append(batcher.unmade)
        batcher.drop([job])
    assert order == [lanes[1], lanes[0], lanes[2]] and batcher.unmade is None and batcher.idle


def test_a_higher_priority_takes_a_seat_and_who_had_it_is_the_first_to_sit_again() -> None:
    batcher = Batcher([SMALL], seats=2)
    for id in "abc":
        add(batcher, id)
    seated(batcher)
    add(batcher, "d", priority=9)
    place = batcher.seat_next()
    assert place and (place.seat, place.picture.job.id) == (1, "d")
    assert place.paused and place.paused.job.id == "b" and batcher.paused_count == 1
    assert seated(batcher) == [] and [picture.job.id for picture in batcher.waiting] == ["b", "c"]
    batcher.finish(SMALL, 1)
    assert seated(batcher) == [(SMALL, 1, "b", 0)] and batcher.paused_count == 0


def test_a_full_lane_does_not_hold_up_another() -> None:
    batcher = Batcher([SMALL, LARGE], seats=1)
    add(batcher, "a")
    add(batcher, "b")
    add(batcher, "c", lane=LARGE)
    assert seated(batcher) == [(SMALL, 0, "a", 0), (LARGE, 0, "c", 0)]


def test_unguided_pictures_own_one_row() -> None:
    batcher = Batcher([SMALL], seats=3)
    add(batcher, "a", rows=1)
    add(batcher, "b")
    assert batcher.rows_live == 0
    seated(batcher)
    assert batcher.rows_live == 3


def test_drop_takes_waiting_and_seated_pictures_of_a_job_and_no_others() -> None:
    batcher = Batcher([SMALL, LARGE], seats=2)
    gone = add(batcher, "a", images=3)
    add(batcher, "b")
    other = add(batcher, "c", lane=LARGE)
    seated(batcher)
    assert batcher.drop([gone]) == [(SMALL, 0), (SMALL, 1)]
    assert [p.job.id for p in batcher.waiting] == ["b"] and batcher.lanes[LARGE].live == [0]
    assert batcher.drop([gone]) == []
    assert seated(batcher) == [(SMALL, 0, "b", 0)]
    assert not batcher.idle
    batcher.drop([other])
    batcher.free(SMALL, 0)
    assert batcher.idle and next_step(batcher) is None


def test_lanes_take_turns_by_accumulated_time() -> None:
    batcher = Batcher([SMALL, LARGE], seats=1)
    add(batcher, "a")
    add(batcher, "b", lane=LARGE)
    seated(batcher)
    turns = []
    for _ in range(10):
        turn = next_step(batcher)
        assert turn and turn[1] == [0]
        turns.append(turn[0])
    assert turns.count(SMALL) == 8 and turns.count(LARGE) == 2


def test_a_lane_that_slept_does_not_get_the_past_back() -> None:
    batcher = Batcher([SMALL, LARGE], seats=1)
    add(batcher, "a")
    seated(batcher)
    for _ in range(100):
        assert next_step(batcher) == (SMALL, [0])
    add(batcher, "b", lane=LARGE)
    seated(batcher)
    turns = [turn[0] for _ in range(10) if (turn := next_step(batcher))]
    assert turns.count(SMALL) == 8 and turns.count(LARGE) == 2


def test_a_lane_that_was_wanted_is_made_after_those_that_somebody_waits_for() -> None:
    batcher, longer = Batcher([SMALL], seats=1), LaneKey(8, 8, 2)
    batcher.open(longer)
    batcher.open(LARGE)
    batcher.lanes[longer].wanted = True
    assert batcher.idle and batcher.unmade == longer
    add(batcher, "a", lane=LARGE)
    assert batcher.unmade == LARGE
    batcher.lanes[LARGE].ready = True
    assert batcher.unmade == longer
    batcher.lanes[longer].ready = True
    assert batcher.unmade is None


def test_who_endangers_a_deadline_waits_and_so_do_those_behind_it() -> None:
    batcher = Batcher([SMALL, LARGE], seats=2)
    add(batcher, "a")
    add(batcher, "b", lane=LARGE)
    asked: list[str] = []
    assert batcher.seat_next(0.0, lambda picture: not asked.append(picture.job.id)) is None and asked == ["a"]
    assert [picture.job.id for picture in batcher.waiting] == ["a", "b"]
    assert seated(batcher) == [(SMALL, 0, "a", 0), (LARGE, 0, "b", 0)]


def test_nobody_sits_down_while_as_many_as_a_lane_has_seats_wait_for_the_decoder() -> None:
    batcher = Batcher([SMALL, LARGE], seats=2)
    for id in "ab":
        add(batcher, id)
    add(batcher, "c", lane=LARGE)
    seated(batcher)
    for id in "de":
        add(batcher, id)
    batcher.finish(SMALL, 0)
    assert not batcher.crowded and batcher.lanes[SMALL].live == [1]
    assert seated(batcher) == [(SMALL, 0, "d", 0)]
    batcher.finish(LARGE, 0)
    assert batcher.crowded and [picture.job.id for picture in batcher.undecoded] == ["a", "c"]
    batcher.finish(SMALL, 1)
    assert seated(batcher) == [] and not batcher.idle, "d sits"
    batcher.finish(SMALL, 0)
    assert batcher.idle and not batcher.empty, "e waits, and can not sit before something is decoded"
    for left in (3, 2, 1):
        assert seated(batcher) == []
        batcher.decoding(batcher.undecoded[0])
        assert len(batcher.undecoded) == left
    assert seated(batcher) == [(SMALL, 0, "e", 0)]


def test_who_has_gone_waits_for_no_decoder_and_an_empty_batcher_has_nothing_to_do() -> None:
    batcher = Batcher([SMALL], seats=2)
    assert batcher.empty
    gone, stays = add(batcher, "a"), add(batcher, "b")
    assert not batcher.empty
    seated(batcher)
    assert not batcher.empty and [picture.job for picture in batcher.seated] == [gone, stays]
    for seat in range(2):
        batcher.finish(SMALL, seat)
    batcher.drop([gone])
    assert [picture.job for picture in batcher.undecoded] == [stays] and not batcher.empty
    batcher.decoding(batcher.undecoded[0])
    assert batcher.empty
