from __future__ import annotations

import math

import pytest

from pipeline.errors import InvalidRequest
from server.limits import checked_text, one_of, within


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "steps is 0; it must be 1 to 150"),
        (10**9, "steps is 1000000000; it must be 1 to 150"),
        (10**400, f"steps is 1{'0' * 63}; it must be 1 to 150"),
        (151, "steps is 151; it must be 1 to 150"),
        (math.nan, "steps is nan; it must be 1 to 150"),
        (math.inf, "steps is inf; it must be 1 to 150"),
        (-math.inf, "steps is -inf; it must be 1 to 150"),
    ],
)
def test_numbers_outside_name_field_value_and_limit(value: float, told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        within("steps", value, 1, 150)
    assert str(refused.value) == told and refused.value.code == "INVALID_ARGUMENT"


def test_numbers_on_the_edge_are_inside() -> None:
    assert within("steps", 1, 1, 150) == 1 and within("guidance", 30.0, 0.0, 30.0) == 30.0


def test_text_is_counted_in_characters_not_bytes() -> None:
    assert checked_text("prompt", "\u00e9" * 4, 4) == "\u00e9" * 4
    with pytest.raises(InvalidRequest, match=r"^prompt has 5 characters; at most 4 are taken$"):
        checked_text("prompt", "abcde", 4)


def test_nul_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidRequest, match=r"^prompt has a NUL character at position 2; text has none$"):
        checked_text("prompt", "ab\0c", 10)


def test_a_choice_is_told_with_its_alternatives_and_cut_to_size() -> None:
    assert one_of("sampler", "ddim", ["ddim"]) == "ddim"
    with pytest.raises(InvalidRequest, match=r"^sampler is 'x{64}'; it must be one of ddim, euler$"):
        one_of("sampler", "x" * 10_000, ["ddim", "euler"])
