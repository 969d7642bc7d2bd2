"""A flood and somebody else, in a server whose time is a number (tests/support/simulated.py).

Seconds are compared in rows: a full step is sixteen of them, and the four steps of a guided picture are eight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest

from server.errors import Busy
from server.job import Job
from tests.support.jobs import idle_job, wish
from tests.support.simulated import LANE, Simulated

FULL, FOUR, FLOOD = 16, 8, 8 * 150 * 2  # rows
BESIDE = 2.0  # seconds after which the other one comes


def quiet(**fields) -> Simulated:
    """Nothing but rows takes time, always the same."""
    return Simulated(encode=0.0, decode=0.0, file=0.0, shaken=0.0, **fields)


def beside(server: Simulated, send: Callable[[], Job | None], whens: list[float], seconds: float = 60.0) -> list[float]:
    """How many rows' time each of these took, beside a flood that came before."""
    jobs: list[Job | None] = []
    arrivals: list = [(0.0, lambda: server.submit(400, None, images=8, caller="flood"))]
    arrivals += [(when, lambda: jobs.append(send())) for when in whens]
    server.run(arrivals, seconds)
    ends = {job: when for when, job in server.delivered}
    return [(ends[job] - job.arrived) / server.row for job in jobs if job is not None]


@pytest.mark.parametrize("late", [0.0, 0.3, 0.9])
def test_beside_a_flood_a_caller_has_an_equal_share_after_one_step(late: float) -> None:
    """Its four steps, of two rows each, with as many of the flood's between them."""
    server = quiet()
    whens = [BESIDE + 3 * i + late * FULL * server.row for i in range(3)]
    took = beside(server, lambda: server.submit(4, None, caller="other"), whens)
    assert len(took) == 3 and max(took) <= 2 * FOUR + FULL
    assert server.pauses == 3, "each time one of the flood's eight"


@pytest.mark.parametrize("late", [0.0, 0.3, 0.9])
def test_a_higher_priority_takes_its_idle_time_and_two_full_steps(late: float) -> None:
    server = quiet()
    when = BESIDE + late * FULL * server.row
    took = beside(server, lambda: server.submit(4, None, caller="other", priority=1), [when])
    assert len(took) == 1 and took[0] <= FOUR + 2 * FULL
    assert took[0] <= FOUR + FULL, "no more than the step that was under way"


def test_a_higher_priority_of_the_same_caller_too() -> None:
    server = quiet()
    assert beside(server, lambda: server.submit(4, None, caller="flood", priority=1), [BESIDE])[0] <= FOUR + FULL


def test_nothing_is_computed_twice_and_nothing_is_lost() -> None:
    """The whole takes what it would first come first served: as many rows, in the same time but for what decodes do."""
    shared, served = Simulated(shaken=0.0), Simulated(shaken=0.0)
    for server, other in ((shared, "other"), (served, "flood")):
        arrivals: list = [(0.0, lambda server=server: server.submit(150, None, images=8, caller="flood"))]
        arrivals += [
            (1.0 + i, lambda server=server, other=other: server.submit(4, None, caller=other)) for i in range(10)
        ]
        server.run(arrivals, 60)
        assert len(server.delivered) == 11
        assert sum(server.rows.values()) == FLOOD + 10 * FOUR
    assert shared.pauses == 10 and served.pauses == 0
    assert shared.delivered[-1][0] <= 1.03 * served.delivered[-1][0]


def test_two_floods_have_equal_shares_whatever_they_ask_for() -> None:
    """One of eight guided pictures, one of three unguided ones: as many rows each, as long as both have work."""
    server = quiet()
    server.submit(150, None, images=8, caller="a")
    server.submit(150, None, images=3, rows=1, caller="b")
    for _ in range(120):
        server.turn()
    assert abs(server.rows["a"] - server.rows["b"]) <= 4


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0, 4.0])
def test_a_key_has_its_weight_beside_a_flood_and_so_it_was_told(weight: float) -> None:
    """One key floods with 8 x 150 steps; of the other's weight and one more, its request has its part of the time."""
    server = quiet()
    server.submit(150, None, images=8, caller="key:flood")
    for _ in range(5):
        server.turn()
    job, had = server.submit(40, None, caller="key:other", weight=weight), server.rows["key:flood"]
    assert job is not None and job.expected is not None
    told = job.expected
    while not server.delivered:
        server.turn()
    took = (server.delivered[0][0] - job.arrived) / server.row
    mine, theirs = server.rows["key:other"], server.rows["key:flood"] - had
    assert mine == 40 * 2 and theirs == pytest.approx(mine / weight, abs=FULL)
    assert took == pytest.approx(mine + theirs) and told / server.row == pytest.approx(mine * (1 + 1 / weight))


@pytest.mark.parametrize(("one", "other"), [(1.0, 2.0), (0.5, 4.0), (3.0, 1.0)])
def test_two_floods_have_shares_as_their_weights(one: float, other: float) -> None:
    server = quiet()
    server.submit(1000, None, images=8, caller="key:a", weight=one)
    server.submit(1000, None, images=8, caller="key:b", weight=other)
    server.turn()
    server.rows.clear()
    while server.rows.total() < 100 * FULL:
        server.turn()
    assert server.rows["key:a"] == pytest.approx(100 * FULL * one / (one + other), abs=2 * FULL)


def test_more_callers_than_seats_take_turns() -> None:
    server = quiet(seats=2)
    for caller in "abcde":
        server.submit(1000, None, caller=caller)
    for _ in range(500):
        server.turn()
    assert min(server.rows.values()) >= 0.7 * max(server.rows.values()) and len(server.rows) == 5
    assert server.pauses <= 2 * 500 / 8, "each has a few steps before it gives up its seat"


def test_being_away_saves_up_nothing_and_being_alone_costs_nothing() -> None:
    server = quiet()
    server.submit(400, None, images=4, caller="a")
    for _ in range(101):
        server.turn()
    had = server.rows["a"]
    assert server.steps == 101 and had == 2 + 100 * 8, "alone it has everything"
    server.submit(400, None, images=4, caller="b")
    for _ in range(100):
        server.turn()
    assert abs(server.rows["b"] - (server.rows["a"] - had)) <= 4, "an equal share from now on"


def test_nobody_is_paused_over_and_over() -> None:
    """Others come one after another; a picture that was resumed has a few steps first."""
    server = quiet(seats=2)
    runs: list[int] = []
    server.submit(3000, None, images=2, caller="flood")
    for turn in range(400):
        if turn % 3 == 0:
            server.submit(1, None, caller="other")
        pauses = server.pauses
        tenants = server.batcher.seated
        ran = {picture: picture.ran for picture in tenants if picture.pauses}
        server.turn()
        if server.pauses > pauses:
            runs += [count for picture, count in ran.items() if picture in server.batcher.waiting]
    assert len(runs) > 10 and min(runs) >= 4


def flat(rows: int) -> float:
    """Seconds of a step on a device where one of few rows takes as long as a full one."""
    return 0.08 + 0.0001 * rows


def test_who_rides_for_nothing_is_never_left_out() -> None:
    server = quiet(step=flat)
    took = beside(server, lambda: server.submit(4, None, caller="other"), [BESIDE])
    assert took[0] * server.row <= 6 * flat(16)
    every = [server.seat_steps / server.steps]
    assert every[0] > 7.5, "all seats in nearly every step"


def test_what_waits_rises_so_that_nothing_starves() -> None:
    """A batch beside a flood of a higher priority that never ends: after its level's time it has an equal share."""
    server = quiet(level_seconds=5.0)
    batch = server.submit(20, None, caller="batch")
    assert batch is not None
    flood: list = [(0.01 + 0.1 * i, lambda: server.submit(12, None, caller="flood", priority=2)) for i in range(400)]
    server.run(flood, 40.0)
    ends = {job: when for when, job in server.delivered}
    assert 2 * 5.0 <= ends[batch] <= 2 * 5.0 + 20 * 2 * 2 * server.row + 2 * FULL * server.row


def test_without_rising_it_would_starve() -> None:
    server = quiet()
    batch = server.submit(20, None, caller="batch")
    flood: list = [(0.01 + 0.1 * i, lambda: server.submit(12, None, caller="flood", priority=2)) for i in range(400)]
    server.run(flood, 40.0)
    assert batch not in {job for _, job in server.delivered}


def test_a_stream_of_new_jobs_keeps_no_paused_one_from_its_seat() -> None:
    """Where callers outnumber seats: who is new has stepped never, and waits from now on all the same."""
    server = quiet(seats=1)
    long = server.submit(50, None, caller="other")
    for _ in range(1000):
        if sum(picture.job.caller == "flood" for picture in server.batcher.waiting) < 2:
            server.submit(2, None, caller="flood")
        server.turn()
    assert server.pauses and long in {job for _, job in server.delivered}


def test_waiting_is_no_advantage_over_equals() -> None:
    """The flood's pictures have waited for long; whoever comes has its share all the same."""
    server = quiet(level_seconds=0.5)
    took = beside(server, lambda: server.submit(4, None, caller="other"), [20.0])
    assert took[0] <= 2 * FOUR + FULL


def test_one_callers_full_queue_does_not_lock_others_out() -> None:
    server = quiet()
    server.admission = type(server.admission)(queue_jobs=4, queue_seconds=1e9)
    while server.submit(50, None, images=8, caller="flood"):
        server.turn()
    assert server.batcher.waiting_jobs()["flood"] == 4
    assert server.submit(50, None, caller="flood") is None
    other = server.submit(4, None, caller="other")
    assert other is not None
    job = idle_job(wish(LANE, 4))
    for job.caller, words in (
        ("flood", "^5 requests are waiting, 4 of them yours; at most 4 may, and beyond them 2 of a caller$"),
        ("third", None),
    ):
        with pytest.raises(Busy, match=words) if words else contextlib.nullcontext():
            server.admission.check(job, server.batcher, server.pace, server.now)
    for caller in "bcdefg":
        server.submit(50, None, caller=caller)
    assert 4 < server.batcher.waiting_jobs().total() <= 8, "up to twice the queue"
