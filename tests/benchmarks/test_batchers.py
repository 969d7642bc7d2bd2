"""The batchers of whole requests: whom each takes, when who is done, and that all of them finish everything."""

from __future__ import annotations

import itertools

import pytest

from benchmarks import batchers
from benchmarks.batchers import BATCHERS, Engine, Order, arrivals, best, measure, p99, sustained
from engines.model import Model


def orders(*steps: int) -> list[Order]:
    return [Order(number, 0.0, each) for number, each in enumerate(steps)]


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("one at a time", [0]),
        ("equal steps together", [0, 2, 4, 6, 8, 10, 12, 14]),
        ("anything together", list(range(8))),
    ],
)
def test_whom_a_batcher_takes(name: str, taken: list[int]) -> None:
    assert [order.number for order in BATCHERS[name](orders(*[4, 50] * 10))] == taken


def test_arrivals_are_the_same_for_everybody() -> None:
    first, second = arrivals((4, 20), 2.0, 50, seed=5), arrivals((4, 20), 2.0, 50, seed=5)
    assert first == second and {order.steps for order in first} == {4, 20}
    assert 10 < first[-1].at < 50 and all(a.at <= b.at for a, b in itertools.pairwise(first))
    assert {order.at for order in arrivals((4,), 0.0, 5, seed=5)} == {0.0}, "a queue that never empties"


def test_figures() -> None:
    ended = [Order(number, 1.0, 4, ended=1.0 + number) for number in range(101)]
    assert p99(ended) == 99 and p99([]) == 0
    assert best({batchers.OURS: 9.0, "a": 1.0, "b": 2.0}, max) == 2 and best({"a": 1.0, "b": 2.0}, min) == 1


def test_a_sustained_rate_is_that_of_the_time_in_which_somebody_waited() -> None:
    """Ten of one second each, one after the other, whose file comes with the last step; nine are done by then."""
    some = [
        Order(number, 0.0, 1, begun=float(number), stepped=[number + 1.0], ended=number + 1.0) for number in range(10)
    ]
    assert sustained(some) == 1
    some[-1].ended = 1000.0
    assert sustained(some) == 1, "what comes when nobody waits any more"
    half = [Order(8, 0.0, 3, begun=1.0, stepped=[5.0, 8.0, 11.0, 99.0], ended=100.0)]
    assert sustained(some[:8] + half + some[9:]) == pytest.approx((8 + 2 / 4) / 9)
    assert sustained(some[:8]) == 1 and sustained(some[-1:]) == 1 / 1000, "nobody waits for a seat"


def test_everything_is_finished_by_each(model: Model) -> None:
    """One at a time steps each alone, equal steps once each kind, anything as often as the longest asks for."""
    engine = Engine(model, (model.spec.defaults.width, model.spec.defaults.height))
    steps: list[list[int]] = []
    stepping = engine.stepper.step
    engine.stepper.step = lambda seats, predict=(): steps.append(list(seats)) or stepping(seats)
    policies: batchers.Policies = {batchers.OURS: engine.seats}
    policies |= {name: lambda some, choose=choose: engine.batches(some, choose) for name, choose in BATCHERS.items()}
    with engine:
        ended = measure(policies, (1, 2, 3), 5, 0.0, rounds=1)
    for order in itertools.chain.from_iterable(one for (one,) in ended.values()):
        assert len(order.stepped) == order.steps and order.begun < order.stepped[0] <= order.stepped[-1] < order.ended
    assert all(len(one) == 5 for (one,) in ended.values())
    wanted = [order.steps for order in arrivals((1, 2, 3), 0.0, 5, seed=5)]
    assert sum(map(len, steps)) == len(BATCHERS) * sum(wanted), "who is done is not stepped any more"
    assert len(steps) == sum(wanted) + sum(set(wanted)) + max(wanted)


def test_rounds_have_arrivals_of_their_own_and_another_batcher_first() -> None:
    ran: list[tuple[str, list[float]]] = []
    policies: batchers.Policies = {
        name: lambda some, name=name: ran.append((name, [o.at for o in some])) for name in "abc"
    }
    ended = measure(policies, (4,), 3, 1.0, rounds=2)
    assert [name for name, _ in ran] == list("abcbca")
    assert ran[0][1] == ran[1][1] == ran[2][1] != ran[3][1] == ran[5][1]
    assert [[order.at for order in one] for one in ended["c"]] == [ran[2][1], ran[4][1]]


@pytest.mark.parametrize("flag", ["--jobs", "--rounds"])
def test_nothing_to_measure_is_refused_in_words(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        batchers.main([flag, "0", "--dry"])
    assert f"{flag} is 0; it must be at least 1" in capsys.readouterr().err
