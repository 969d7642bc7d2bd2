"""What callers asked for lately: numbers in, shares out."""

from __future__ import annotations

import pytest

from server.batching.demand import _CALLERS, _SECONDS, Claim, Demand
from server.batching.parties import Away
from server.batching.seated import Party


def test_a_steady_demand_is_its_share_of_the_device() -> None:
    demand = Demand()
    for number in range(1000):
        demand.note("a", 0, 0.025, 0.1 * number)
    ((caller, priority, weight, share),) = demand.shares(100.0)
    assert (caller, priority, weight) == ("a", 0, 1.0) and share == pytest.approx(0.25, rel=0.02)


def test_it_is_forgotten_and_a_clock_that_goes_back_adds_nothing() -> None:
    demand = Demand()
    demand.note("a", 0, 1.0, 50.0)
    demand.note("b", 2, 1.0, 50.0 + _SECONDS, 3.0)
    assert [asked[:3] for asked in demand.shares(0.0)] == [("a", 0, 1.0), ("b", 2, 3.0)]
    old, new = (asked.share for asked in demand.shares(50.0 + _SECONDS))
    assert old == pytest.approx(new / 2.718, rel=0.01) and new == pytest.approx(1 / _SECONDS)
    assert not list(demand.shares(50.0 + 20 * _SECONDS)) and not len(demand)


def test_of_more_callers_than_it_keeps_those_who_asked_last_are_kept() -> None:
    demand = Demand()
    for number in (*range(_CALLERS), 0, _CALLERS):
        demand.note(str(number), 0, 1.0, 0.0)
    kept = [asked.caller for asked in demand.shares(0.0)]
    assert len(kept) == _CALLERS and "1" not in kept and {"0", str(_CALLERS)} <= set(kept)


A, B, C = Party(0, "a"), Party(0, "b"), Party(1, "c")


def test_parties_come_again_each_with_its_share() -> None:
    away = Away({A: 1.0, B: 1.0, C: 1.0})
    assert away.sharing(0, 0) == 2 and away.sharing(1, 0) == 1
    away.comes(A)
    assert away.sharing(0, 1) == 2
    away.comes(B)
    assert away.sharing(0, 2) == 2


def test_where_it_is_known_they_come_with_what_they_ask_for() -> None:
    shares = {"a": (0, 9.0), "b": (0, 0.04), "c": (0, 0.03), "d": (3, 1.0)}
    asked = [Claim(who, level, 1.0, share) for who, (level, share) in shares.items()]
    away = Away({A: 1.0, B: 1.0}, asked, known=True)
    away.comes(A)
    assert away.sharing(0, 1) == pytest.approx(1 / (1 - 0.04 - 0.03 - 3 * 0.05)), "and three times the root, for bursts"
    away.comes(B)
    assert away.sharing(0, 2) == pytest.approx(2 / (1 - 4 * 0.03))
    away.leaves(A)
    assert away.sharing(0, 1) == 3, "one that asks for all has no more than a share"
    assert away.sharing(3, 0) == 1 and away.sharing(7, 2) == 2


def test_who_is_here_and_has_not_asked_for_long_does_not_come_again() -> None:
    away = Away({A: 1.0, B: 1.0}, known=True)
    away.comes(A)
    assert away.sharing(0, 1) == 1


def test_whose_weight_is_more_takes_more_when_it_comes_again() -> None:
    away = Away({A: 1.0, B: 3.0})
    away.comes(A)
    assert away.sharing(0, 1.0) == 4.0
    away = Away({A: 2.0}, [Claim("b", 0, 5.0, 1.0), Claim("c", 0, 0.5, 0.0)], known=True)
    away.comes(A)
    assert away.sharing(0, 2.0) == 2.0 + 5.0 + 0.5, "b asks for all, and has its share at most"
