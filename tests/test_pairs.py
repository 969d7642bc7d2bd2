"""Grids meet every pair of values, and are whole where that is wanted."""

from __future__ import annotations

import itertools

import pytest

from tests.support.pairs import grid, pairs

SIZES = [
    (2, 4, 2, 17, 6),
    (17, 4, 2, 4),
    (15, 4, 3),
    (2, 14, 4, 6),
    (3, 3, 3, 3),
    (2, 2, 2, 2, 2, 2),
    (1, 5, 1),
    (6, 5),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_pair_is_covered(sizes: tuple[int, ...]) -> None:
    rows = pairs(*sizes)
    for one, other in itertools.combinations(range(len(sizes)), 2):
        assert {(row[one], row[other]) for row in rows} == set(
            itertools.product(range(sizes[one]), range(sizes[other]))
        )
    least = sorted(sizes)[-1] * sorted(sizes)[-2]
    assert least <= len(rows) == len(set(rows)) <= 2 * least, "few"


def test_one_factor_has_no_pairs_and_all_its_values() -> None:
    assert pairs(3) == [(0,), (1,), (2,)] and pairs() == []


def test_a_grid_is_whole_and_marks_what_pairs_leave_out() -> None:
    params = grid("abc", [{}, {"x": 1}, {"x": 2}], (True, False))
    assert [param.values for param in params] == [*itertools.product("abc", [{}, {"x": 1}, {"x": 2}], (True, False))]
    marked = [bool(param.marks) for param in params]
    assert marked.count(False) == 9 and {mark.name for param in params for mark in param.marks} == {"exhaustive"}


def test_what_is_given_counts() -> None:
    rows = itertools.product("a", range(3), "xyz")
    run = [param.values for param in grid("ab", range(3), "xyz", always=[*rows]) if not param.marks]
    assert len(run) == 9 + 3 and {(row[1], row[2]) for row in run[9:]} <= {*itertools.product(range(3), "xyz")}
    assert {row[1] for row in run[9:]} == {0, 1, 2} and {row[2] for row in run[9:]} == {*"xyz"}
