"""Choices of who steps that stand while nobody comes or goes, and what ends them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from server.batching.batcher import Batcher
from server.pace.behind import Behind
from server.pace.pace import Pace
from server.wish import LaneKey
from tests.support.jobs import idle_job, wish

SMALL, LARGE = LaneKey(8, 8, 1), LaneKey(16, 8, 1)


def sit(batcher: Batcher) -> None:
    while batcher.seat_next():
        pass


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "seconds",
    [lambda rows: rows, lambda rows: 0.4 + 0.8 * rows, lambda rows: 8.0, lambda rows: 2.0 * math.ceil(rows / 4)],
    ids=["each its time", "together a little less", "as one", "stairs"],
)
def test_a_choice_that_stands_is_what_would_be_chosen_anew(seed: int, seconds: Callable[[int], float]) -> None:
    """Jobs come, end and are cancelled; of one caller at first, then of two, then of one again.

    Each has as many rows as the others: else who has less left may change while both step, and that is told a few
    steps later.
    """
    asked: list[int] = []
    both = Batcher([SMALL], seats=6), Batcher([SMALL], seats=6)
    both[1]._share.again = lambda moves: None  # type: ignore[method-assign]

    def step(lane: LaneKey, rows: int) -> float:
        asked.append(rows)
        return seconds(rows)

    draw, looks = random.Random(seed), ([0], [0])
    for turn in range(600):
        if draw.random() < 0.06:
            caller = draw.choice("ab") if 200 < turn < 400 else "a"
            evaluations = draw.choice((4, 20, 50))
            deadline = 1e9 if draw.random() < 0.1 else None
            for batcher in both:
                job = idle_job(wish(SMALL, evaluations), str(turn))
                job.caller, job.arrived, job.deadline = caller, float(turn), deadline
                batcher.add(job)
        chosen = []
        for batcher, counted in zip(both, looks, strict=True):
            sit(batcher)
            asked.clear()
            chosen.append(batcher.next_step(float(turn), lambda lane: 1.0, step, Behind(2.0, 1.0)))
            counted[0] += len(asked)
            for seat in chosen[-1][1] if chosen[-1] else ():
                tenant = batcher.lanes[SMALL].tenants[seat]
                assert tenant
                tenant.reached += 1
                if not tenant.evaluations_left:
                    batcher.finish(SMALL, seat)
                    batcher.decoding(tenant)
        assert chosen[0] == chosen[1], f"in turn {turn}"
        if (gone := draw.random()) < 0.01:
            for batcher in both:
                if jobs := sorted({picture.job for picture in batcher.seated}, key=lambda job: job.id):
                    batcher.drop([jobs[int(100 * gone * len(jobs))]])
    assert looks[0][0] < 0.85 * looks[1][0], "what steps take is hardly asked less often"


@pytest.mark.parametrize("turn", range(1, 20))
def test_a_level_that_is_crossed_while_nobody_comes_makes_another_party(turn: int) -> None:
    """Who sits rises while somebody of a higher priority waits for a lane that is being made."""
    batcher = Batcher([SMALL], seats=2)
    batcher.level_seconds = 10.0
    batcher.open(LARGE)
    batcher.add(idle_job(wish(SMALL, 50, priority=-1)))
    sit(batcher)
    batcher.add(idle_job(wish(LARGE, 50)))
    for step in range(40):
        now = 9.9 if step < turn else 10.1
        assert batcher.next_step(now, lambda lane: 1.0, lambda lane, rows: rows) == (SMALL, [0])


def test_what_a_first_step_of_few_rows_tells_is_used_in_the_next() -> None:
    """On a device that takes as long for all, of which that is not known before there was a step of few."""
    batcher, pace, told = Batcher([SMALL], seats=8), Pace({SMALL: 0.5}), []
    for _ in range(8):
        batcher.add(idle_job(wish(SMALL, 20)))
    sit(batcher)
    for now in range(8):
        turn = batcher.next_step(float(now), pace.row, pace.step, pace.behind)
        assert turn
        told.append(len(turn[1]))
        pace.stepped(SMALL, 2 * told[-1], 1.0, float(now))
    assert told[0] == 8 and told[2:] == [8] * 6
