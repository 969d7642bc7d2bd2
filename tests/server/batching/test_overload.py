"""More than the server can do, in a server whose time is a number (tests/support/simulated.py)."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest

from tests.support.simulated import Simulated

SECONDS = 20.0
DEADLINE = 24 * 16 * 0.005  # twice what twelve steps take in full seats


def arrivals(server: Simulated, factor: float, send: Callable[[], object]) -> list[tuple[float, Callable[[], object]]]:
    """Poisson arrivals at `factor` times what the server can do."""
    draw = random.Random(3)
    gaps = (draw.expovariate(factor * server.capacity) for _ in itertools.count())
    return [(when, send) for when in itertools.takewhile(SECONDS.__gt__, itertools.accumulate(gaps))]


SPEEDS = {
    "steady": lambda now: 1.0,
    "waves": lambda now: 1 + 0.5 * math.sin(now),
}


@pytest.mark.parametrize("factor", [3, 10])
@pytest.mark.parametrize("speed", SPEEDS)
def test_overload_with_deadlines_keeps_its_goodput_and_its_word(factor: int, speed: str) -> None:
    server = Simulated(speed=SPEEDS[speed])
    server.run(arrivals(server, factor, lambda: server.submit(12, DEADLINE)), SECONDS + DEADLINE)
    in_time = [when for when, _ in server.delivered if DEADLINE < when <= SECONDS]
    assert len(in_time) / (SECONDS - DEADLINE) >= 0.9 * server.capacity
    assert 12 * len(server.delivered) >= 0.9 * server.seat_steps
    assert len(server.admitted) - len(server.delivered) <= 0.05 * len(server.admitted)
    assert len(server.admitted) < 0.5 * server.sent


@pytest.mark.parametrize("factor", [3, 10])
def test_two_callers_keep_their_word_and_who_has_no_deadline_gets_its_share(factor: int) -> None:
    """One asks for many times what the server can do, with deadlines; the other for a quarter of it, without."""
    server = Simulated()
    flood = arrivals(server, factor, lambda: server.submit(12, DEADLINE, caller="flood"))
    small: list = []
    flood += arrivals(server, 0.25, lambda: small.append((server.now, server.submit(12, None, caller="small"))))
    server.run(flood, SECONDS + 2 * DEADLINE)
    ends = {job: when for when, job in server.delivered}
    assert len(server.admitted) - len(ends) <= 0.05 * len(server.admitted)
    assert 12 * len(ends) >= 0.9 * server.seat_steps
    assert len(ends) / (SECONDS + DEADLINE) >= 0.85 * server.capacity
    assert len(small) > 20 and max(ends[job] - sent for sent, job in small) < 2 * DEADLINE


def test_a_stall_costs_those_whom_it_met_and_nobody_after_it() -> None:
    """A step takes 3 s, as long as all others of a request together and more."""
    server = Simulated(speed=lambda now: 40.0 if 5.0 < now < 5.1 else 1.0)
    server.run(arrivals(server, 3, lambda: server.submit(12, DEADLINE)), SECONDS + DEADLINE)
    assert len(server.admitted) - len(server.delivered) < 3 * server.seats
    after = [when for when, _ in server.delivered if 12 < when <= SECONDS]
    assert len(after) / (SECONDS - 12) >= 0.9 * server.capacity


@pytest.mark.parametrize("factor", [3, 10])
@pytest.mark.parametrize("change", [1 / 10, 1 / 3, 1 / 2, 2, 3, 5])
def test_goodput_is_back_two_deadlines_after_the_machine_changed_its_speed(factor: int, change: float) -> None:
    """The deadline stays as it is: at a third of the speed it is too short for full seats, not for half of them."""
    server = Simulated(speed=lambda now: max(1.0, 1 / change) if now < 8 else max(1.0, change))
    server.run(arrivals(server, factor, lambda: server.submit(12, DEADLINE)), SECONDS)
    after = [when for when, _ in server.delivered if 8 + 2 * DEADLINE < when <= SECONDS]
    assert len(after) / (SECONDS - 8 - 2 * DEADLINE) >= 0.8 * server.capacity / max(1.0, change)


@pytest.mark.parametrize("factor", [3, 10])
def test_a_processor_that_is_had_in_slices_keeps_most_of_the_goodput(factor: int) -> None:
    """A quarter of everything takes ten times as long. Whoever plans with medians wastes half of the steps."""
    server = Simulated(sliced=0.25)
    server.run(arrivals(server, factor, lambda: server.submit(12, DEADLINE)), SECONDS)
    after = [when for when, _ in server.delivered if when > 8]
    assert len(after) / (SECONDS - 8) >= 0.7 * server.capacity
    assert 12 * len(server.delivered) >= 0.7 * server.seat_steps


def test_below_capacity_hardly_anybody_is_refused_and_nobody_is_late() -> None:
    server = Simulated()
    server.run(arrivals(server, 0.5, lambda: server.submit(12, DEADLINE)), SECONDS + DEADLINE)
    assert len(server.admitted) >= 0.98 * server.sent and len(server.delivered) == len(server.admitted)


def test_who_has_no_deadline_is_not_starved_by_those_who_have_one() -> None:
    server = Simulated()
    patient: list = []
    flood = arrivals(server, 3, lambda: server.submit(12, DEADLINE))
    flood += [(2.0 + i, lambda: patient.append((server.now, server.submit(12, None)))) for i in range(10)]
    server.run(flood, SECONDS + DEADLINE)
    ends = {job: when for when, job in server.delivered}
    assert max(ends[job] - sent for sent, job in patient) < 2 * DEADLINE


def test_who_has_no_deadline_makes_nobody_late() -> None:
    """Tight deadlines one after the other, and a crowd that is in no hurry."""
    server = Simulated(shaken=0.0)
    tight: list = []
    crowd = [(0.001, lambda: server.submit(30, None, images=8)), (0.002, lambda: server.submit(30, None, images=8))]
    crowd += [(6.0 + 2 * i, lambda: tight.append(server.submit(12, 1.5 * 12 * 16 * 0.005))) for i in range(5)]
    server.run(crowd, SECONDS)
    admitted = [job for job in tight if job is not None]
    assert len(admitted) == 5 and {job for _, job in server.delivered} >= set(admitted)


@pytest.mark.parametrize("factor", [3, 10])
def test_a_flood_of_tight_deadlines_keeps_nobody_out_who_asks_for_less_than_a_share(factor: int) -> None:
    """The other one asks for a quarter of what the server can do, with deadlines as tight."""
    server = Simulated()
    flood = arrivals(server, factor, lambda: server.submit(12, DEADLINE, caller="flood"))
    small: list = []
    flood += arrivals(server, 0.25, lambda: small.append(server.submit(12, DEADLINE, caller="small")))
    server.run(flood, SECONDS + DEADLINE)
    admitted, ends = [job for job in small if job is not None], {job for _, job in server.delivered}
    assert len(small) > 20 and len(admitted) >= 0.8 * len(small) and set(admitted) <= ends
    assert len(server.admitted) - len(ends) <= 0.05 * len(server.admitted), "and no promise is broken for it"
    in_time = [when for when, _ in server.delivered if DEADLINE < when <= SECONDS]
    assert len(in_time) / (SECONDS - DEADLINE) >= 0.9 * server.capacity


def test_many_callers_who_ask_for_little_are_not_refused_for_each_others_sake() -> None:
    """Fifty of them, half of what the server can do in all."""
    server, numbers = Simulated(), itertools.count()
    server.run(
        arrivals(server, 0.5, lambda: server.submit(12, DEADLINE, caller=f"caller {next(numbers) % 50}")),
        SECONDS + DEADLINE,
    )
    assert len(server.admitted) >= 0.95 * server.sent and len(server.delivered) == len(server.admitted)
