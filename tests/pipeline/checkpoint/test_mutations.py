"""A few hundred of the random damages of tests/support/mutations.py, the same ones in every run."""

from __future__ import annotations

from pathlib import Path

from tests.support.mutations import run


def test_random_damage_is_refused_in_a_sentence_or_harmless(tmp_path: Path) -> None:
    told: list[str] = []
    refused, broken = run(tmp_path, times=200, seed=2026, say=told.append)
    assert not broken, "\n".join(told)
    assert refused > 100, "or the damage is none"
