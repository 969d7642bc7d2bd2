"""Stalls and overload through the whole device: its pace is given, and it is held, so that no time needs to pass."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from engines.model import Model
from server.device import turn
from server.errors import Busy, TooLate
from server.events import Done
from server.pace.median import Median
from tests.support.held import Held
from tests.support.jobs import Running, box_of, running

PLAIN = {"prompt": "a red apple", "steps": 4, "guidance": 3.0}


def paced(at_work: Running, row: float, decode: float = 0.0) -> None:
    """From now on a row takes so many seconds, says the pace, until it has seen otherwise."""
    pace = at_work.device._pace
    for lane in pace._rows:
        pace._rows[lane] = Median([row] * 9)
        pace._decode[lane.width, lane.height] = Median([decode] * 9)


def within(at_work: Running, seconds: float, **fields: Any):
    return at_work.submit(deadline=time.monotonic() + seconds, **{**PLAIN, **fields})


@pytest.mark.parametrize("stall", [300.0, -300.0])
def test_one_stall_refuses_nobody(stall: float, wired: Model, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is stopped within a step, or its clock jumps; whoever comes next has a deadline."""
    jump = 0.0
    monkeypatch.setattr(turn, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + jump))

    def stop() -> None:
        nonlocal jump
        jump = stall if len(held.runs) == 2 else 0.0

    with running(wired) as at_work:
        held.runs.clear()
        held.before_run = stop
        assert isinstance(box_of(at_work.submit(**PLAIN)).end(), Done)
        assert isinstance(box_of(within(at_work, 30)).end(), Done)
        held.hold()
        sits = at_work.submit(**PLAIN)
        held.begun()
        beside = within(at_work, 30)  # not idle: the forecast decides
        held.release()
        assert isinstance(box_of(sits).end(), Done) and isinstance(box_of(beside).end(), Done)


def test_a_pace_that_is_wrong_is_corrected_by_whoever_comes(wired: Model) -> None:
    """Steps were 100 times and more slower for a while; then nobody stepped, so nothing told that it is over."""
    with running(wired) as at_work:
        paced(at_work, 1000.0)
        assert isinstance(box_of(within(at_work, 30, steps=3)).end(), Done), "too few steps to correct it"
        assert isinstance(box_of(within(at_work, 30)).end(), Done)
        assert at_work.device.full_step < 100 and isinstance(box_of(within(at_work, 30)).end(), Done)


def test_all_that_are_admitted_are_delivered_and_the_others_know_when_to_ask_again(wired: Model, held: Held) -> None:
    """Two seats, 16 s for two guided pictures of four steps: of those with 60 s there is place for six at most."""
    with running(wired, ready=held.hold) as at_work:
        paced(at_work, 1.0)
        admitted, refused = [], []
        for _ in range(30):
            try:
                admitted.append(within(at_work, 60))
            except Busy as busy:
                refused.append(busy)
        assert 4 <= len(admitted) <= 6 and len(admitted) + len(refused) == 30
        assert all(0 < busy.retry_after < 60 and "would finish in about" in str(busy) for busy in refused)
        held.release()
        assert all(isinstance(box_of(job).end(), Done) for job in admitted)
        assert at_work.metric("seat_steps_total") == at_work.metric("seat_steps_delivered_total")
        assert at_work.metric("given_up_total", where="seat") is None


def test_pictures_of_one_step_are_limited_by_the_decoder(wired: Model, held: Held) -> None:
    """A flood of eight one-step pictures a call was admitted without an end: what was finished was no queue."""
    with running(wired, ready=held.hold) as at_work:
        paced(at_work, 0.001, decode=1.0)
        admitted = 0
        with pytest.raises(Busy, match="a seat would be free in about 6[0-9] s; at most 60 s are waited"):
            for admitted in range(100):  # noqa: B007
                at_work.submit(prompt="a cat", steps=1, images=8)
        assert 7 <= admitted <= 9
        held.release()


def test_who_asks_for_more_than_there_is_until_his_deadline_has_asked_for_no_more_than_that(
    wired: Model, held: Held
) -> None:
    """Else one request that can never be let in would keep half of the device free of promises for a minute."""
    with running(wired, ready=held.hold) as at_work:
        paced(at_work, 100.0)
        sits = at_work.submit(**PLAIN)
        with pytest.raises(
            TooLate, match=r"^the request takes about 800.00 s by itself; its deadline is in (2.00|1.\d\d) s$"
        ):
            within(at_work, 2.0, caller="other")
        shares = {asked.caller: asked.share for asked in at_work.device._jobs.demand.shares(time.monotonic())}
        assert 0 < shares["other"] <= 2.0 / 5
        held.release()
        assert isinstance(box_of(sits).end(), Done)
