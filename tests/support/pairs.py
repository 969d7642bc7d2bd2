"""Grids of parameters: `make test` meets each pair of values at least once, `make test-all` every combination."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest

Row = tuple[int, ...]  # of a grid: the number of each factor's value


def grid(*factors: Sequence[Any], always: Sequence[tuple[Any, ...]] = ()) -> list[Any]:
    """Return every combination of one value a factor, for parametrize; those beyond `pairs` are marked exhaustive.

    `always` are never marked: combinations that are cheap, or whose values go a way in a test that no others go.
    """
    given = [tuple(factor.index(value) for factor, value in zip(factors, row, strict=True)) for row in always]
    chosen = set(pairs(*map(len, factors), given=given))
    return [
        pytest.param(
            *(factor[number] for factor, number in zip(factors, row, strict=True)),
            marks=() if row in chosen else pytest.mark.exhaustive,
        )
        for row in itertools.product(*(range(len(factor)) for factor in factors))
    ]


def pairs(*sizes: int, given: Sequence[Row] = ()) -> list[Row]:
    """Return rows in which any two values of two factors meet: those given, and few more; the same every time.

    Each begins with a pair that is missing, of the largest factors first, and takes of every other factor the value
    that brings most of what else is missing, of equals any. Factors of 17, 6, 4, 2 and 2 values take 102 rows, which
    is the least.
    """
    order = sorted(range(len(sizes)), key=lambda factor: -sizes[factor])
    values = {factor: [(factor, number) for number in range(sizes[factor])] for factor in order}
    missing = {
        frozenset(pair): None
        for one, other in itertools.combinations(order, 2)
        for pair in itertools.product(values[one], values[other])
    }
    rows: list[Row] = []
    chance = random.Random(1)

    def take(row: Row) -> None:
        rows.append(row)
        for pair in itertools.combinations(enumerate(row), 2):
            missing.pop(frozenset(pair), None)

    for row in given:
        take(row)
    while missing:
        chosen = dict(next(iter(missing)))
        for factor in order:
            if factor not in chosen:
                worth = {
                    number: (
                        sum(frozenset(((factor, number), known)) in missing for known in chosen.items()),
                        chance.random(),
                    )
                    for number in range(sizes[factor])
                }
                chosen[factor] = max(worth, key=worth.__getitem__)
        take(tuple(chosen[factor] for factor in range(len(sizes))))
    return rows or [(number,) for size in sizes for number in range(size)]
