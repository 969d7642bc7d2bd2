"""Who cannot be done before the server stops, against sums done by hand: a row takes 0.1 s, two rows a step."""

from __future__ import annotations

import pytest

from server.batching.batcher import Batcher
from server.batching.parting import unfinished
from server.job import Job
from server.pace.pace import Pace
from tests.support.jobs import SMALL, idle_job, wish

PACE = Pace({SMALL: 0.1})


def jobs(*steps: int) -> list[Job]:
    return [idle_job(wish(evaluations=number)) for number in steps]


def batcher(crowd: list[Job], seats: int = 1) -> Batcher:
    filled = Batcher([SMALL], seats)
    for job in crowd:
        filled.add(job)
    while filled.seat_next():
        pass
    return filled


@pytest.mark.parametrize(
    ("seconds", "late"),
    [
        (100.0, {}),
        (5.9, {3: 6.0}),
        (4.9, {2: 5.0}),  # without which the last one makes it
        (2.9, {1: 3.0, 2: 5.0}),
        (0.9, {0: 1.0, 1: 3.0, 2: 5.0, 3: 6.0}),
    ],
)
def test_one_after_another(seconds: float, late: dict[int, float]) -> None:
    crowd = jobs(5, 10, 10, 5)
    result = unfinished(batcher(crowd), PACE, seconds)
    assert set(result) == {crowd[index] for index in late}
    if seconds == 0.9:
        assert list(result)[-1] is crowd[0], "who sits is told last"
    if len(late) == 1:
        assert [*result.values()] == [pytest.approx(*late.values())]


def test_who_sits_makes_it_once_others_are_gone() -> None:
    crowd = jobs(5, 50)  # a step of both takes 0.4 s
    assert set(unfinished(batcher(crowd, seats=2), PACE, 1.5)) == {crowd[1]}
    assert set(unfinished(batcher(crowd, seats=2), PACE, 0.9)) == set(crowd)


def test_the_batcher_is_as_it_was() -> None:
    crowd = jobs(50, 50, 50)
    here = batcher(crowd, seats=2)
    assert set(unfinished(here, PACE, 0.1)) == set(crowd)
    assert [tenant.job for tenant in here.seated] == crowd[:2] and [p.job for p in here.waiting] == crowd[2:]
