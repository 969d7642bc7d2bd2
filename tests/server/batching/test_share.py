"""Which seats step next, chosen by hand: seconds are rows."""

from __future__ import annotations

from collections import Counter

import pytest

from server.batching.seated import Party, Seated
from server.batching.share import Share
from server.job import Picture
from server.pace.pace import Pace
from server.wish import LaneKey
from tests.support.jobs import idle_job, wish

SMALL, LARGE = LaneKey(8, 8, 1), LaneKey(16, 8, 1)
ROW = {SMALL: 1.0, LARGE: 4.0}


class Table:
    """Some pictures in their seats."""

    def __init__(self) -> None:
        self.share, self.seated, self.turns = Share(), list[Seated](), 0
        self.spent = Counter[LaneKey]()
        self.rows: Counter[str] = Counter()

    def sit(
        self, caller: str, pictures: int, level: int = 0, rows: int = 2, lane: LaneKey = SMALL, weight: float = 1.0
    ) -> None:
        for _ in range(pictures):
            picture = Picture(idle_job(wish(lane, rows=rows)), 0)
            picture.job.weight = weight
            self.seated.append(Seated(lane, len(self.seated), picture, Party(level, caller)))

    def step(self, times: int = 1, pace: Pace | None = None) -> list[str]:
        """Who stepped in the last of so many steps."""
        last: list[str] = []
        for _ in range(times):
            at = pace.step if pace else (lambda lane, rows: ROW[lane] * rows)
            lane, seats = self.share.next(self.seated, ROW.__getitem__, at)
            self.turns += 1
            last = []
            for seat in seats:
                one = self.seated[seat]
                assert one.lane == lane
                one.picture.turn = self.turns
                self.rows[one.party.caller] += one.picture.rows
                self.spent[lane] += ROW[lane] * one.picture.rows
                last.append(one.party.caller)
        return last


def test_one_caller_steps_all_that_it_has() -> None:
    table = Table()
    table.sit("a", 5)
    assert table.step() == ["a"] * 5


def test_one_picture_beside_many_is_in_every_step_with_one_of_them() -> None:
    table = Table()
    table.sit("flood", 7)
    table.step(20)
    table.sit("other", 1)
    table.rows.clear()
    assert [sorted(table.step()) for _ in range(14)] == [["flood", "other"]] * 14
    assert table.rows == {"flood": 28, "other": 28}
    # Each of the seven had its turn twice.
    assert {one.picture.turn > 20 for one in table.seated} == {True}


@pytest.mark.parametrize("pictures", [(8, 3, 1), (1, 1, 1), (2, 6, 5)])
def test_callers_have_equal_rows_whatever_they_have(pictures: tuple[int, int, int]) -> None:
    table = Table()
    for caller, count, rows in zip("abc", pictures, (2, 1, 2), strict=True):
        table.sit(caller, count, rows=rows)
    table.step(300)
    assert max(table.rows.values()) - min(table.rows.values()) <= 4


@pytest.mark.parametrize(("mine", "theirs"), [(2.0, 1.0), (1.0, 0.25), (3.0, 1.5), (5.0, 3.0), (1.0, 1.0)])
@pytest.mark.parametrize("pictures", [(8, 8), (1, 1), (1, 7), (7, 1)])
def test_rows_are_as_the_weights_whatever_callers_have(pictures: tuple[int, int], mine: float, theirs: float) -> None:
    table = Table()
    table.sit("a", pictures[0], weight=mine)
    table.sit("b", pictures[1], weight=theirs)
    table.step(100)  # one may have a step of all its pictures before the other has had any
    table.rows.clear()
    table.step(400)
    assert table.rows["a"] / table.rows["b"] == pytest.approx(mine / theirs, rel=0.05)


@pytest.mark.parametrize("times", [0.01, 0.5, 10.0])
def test_weights_are_of_one_caller_beside_another_and_not_of_themselves(times: float) -> None:
    """Callers who have all the same little weight step what they would without one: a step of few rows is a waste."""
    as_ever, weighed = Table(), Table()
    for table, weight in ((as_ever, 1.0), (weighed, times)):
        table.sit("a", 4, weight=weight)
        table.sit("b", 4, weight=weight)
        table.sit("c", 4, lane=LARGE, weight=3 * weight)
        table.step(300)
    assert weighed.rows == as_ever.rows and weighed.spent == as_ever.spent


@pytest.mark.parametrize("weight", [0.1, 0.5, 1.0, 2.0])
def test_who_is_alone_steps_the_same_as_beside_nobody_of_its_level(weight: float) -> None:
    """With somebody of a lower level in another lane it is alone as well."""
    alone, above = Table(), Table()
    alone.sit("a", 5, level=1, weight=weight)
    above.sit("a", 5, level=1, weight=weight)
    above.sit("b", 1, lane=LARGE)
    assert [alone.step() for _ in range(40)] == [above.step() for _ in range(40)]


def test_weights_count_between_lanes_and_not_between_levels() -> None:
    table = Table()
    table.sit("a", 2, weight=3.0)
    table.sit("b", 2, lane=LARGE)
    table.step(400)
    assert table.spent[SMALL] / table.spent[LARGE] == pytest.approx(3, rel=0.05)
    table.sit("c", 1, level=1, weight=0.01)
    table.rows.clear()
    assert {tuple(table.step()) for _ in range(20)} == {("c",)}


def test_lanes_are_shared_by_callers_and_not_by_sizes() -> None:
    """One has pictures of two sizes, the other of one: the device's time is halved, not cut in three."""
    table = Table()
    table.sit("a", 3)
    table.sit("a", 3, lane=LARGE)
    table.sit("b", 3, lane=LARGE)
    had: Counter[str] = Counter()
    for _ in range(600):
        before = {one.seat: one.picture.turn for one in table.seated}
        table.step()
        for one in table.seated:
            if one.picture.turn != before[one.seat]:
                had[one.party.caller] += 2 * int(ROW[one.lane])
    assert had["a"] == pytest.approx(had["b"], rel=0.02)
    assert table.spent[SMALL] == pytest.approx(had["a"] / 2, rel=0.02), "its own sizes take turns"


@pytest.mark.parametrize("others", ["b", "bcd", "a", ""])
def test_no_stream_of_short_jobs_keeps_a_long_one_from_ending_whoever_steps_between(others: str) -> None:
    """Callers, or lanes of a caller, step by turns, so that one of them may have each second or fourth step alone."""
    table = Table()
    for number, caller in enumerate(others):
        table.sit(caller, 1, lane=LaneKey(16 + 8 * number, 8, 1))
    long, short = (idle_job(wish(SMALL, evaluations=count)) for count in (1000, 4))
    long.arrived, short.arrived = 0.0, 1.0
    sitting = [Picture(job, 0) for job in (long, short)]
    table.seated += [Seated(SMALL, len(table.seated) + at, one, Party(0, "a")) for at, one in enumerate(sitting)]
    turns = 0
    for _ in range(400):
        lane, seats = table.share.next(table.seated, lambda lane: 1.0, lambda lane, rows: float(rows))
        turns += lane == SMALL
        for seat in seats:
            table.seated[seat].picture.reached += table.seated[seat].lane == SMALL
        sitting[1].reached %= 4  # the next short one, which came later
    assert sitting[0].reached == pytest.approx(turns / 4, rel=0.25)


@pytest.mark.parametrize("price", [0.0, 1.0])
def test_somebody_steps_whatever_a_row_takes(price: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One picture of a row that takes nothing beside one of the larger size."""
    monkeypatch.setitem(ROW, SMALL, price)
    table = Table()
    table.sit("a", 1, rows=1)
    table.sit("b", 1, lane=LARGE)
    assert all(table.step() for _ in range(20)) and table.rows["b"]


def test_the_highest_level_steps_alone() -> None:
    table = Table()
    table.sit("a", 4)
    table.sit("b", 1, level=1)
    assert table.step() == ["b"]
    del table.seated[-1]
    assert table.step() == ["a"] * 4


def test_a_device_on_which_few_rows_take_as_long_as_many_leaves_nobody_out() -> None:
    pace = Pace({SMALL: 1.0})
    for rows in (4, 16):
        pace.stepped(SMALL, rows, 10.0 + 0.01 * rows, 0.0)
    table = Table()
    table.sit("a", 7)
    table.sit("b", 1)
    assert len(table.step(pace=pace)) == 8
    assert sum(len(table.step(pace=pace)) == 2 for _ in range(64)) == 4, "but to look what it takes without them"


def test_a_stalled_step_does_not_let_everybody_ride_for_ever() -> None:
    """The first step of two pictures took 3 s, as long as a hundred others; on this device each row takes its time."""
    pace = Pace({SMALL: 1.0})
    pace.stepped(SMALL, 16, 16.0, 0.0)
    pace.stepped(SMALL, 4, 1000.0, 0.0)
    table = Table()
    table.sit("a", 7)
    table.sit("b", 1)
    assert len(table.step(pace=pace)) == 8
    for _ in range(100):
        seats = len(table.step(pace=pace))
        pace.stepped(SMALL, 2 * seats, 2.0 * seats, 0.0)
    assert seats == 2
