"""The sections that launch kernels, in Triton's interpreter: it must be chosen before triton is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu.frame.report import read_rows
from benchmarks.gpu.frame.targets import TARGETS
from benchmarks.gpu.sections.attention import shapes


def test_kernels_are_compared_with_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu_check.main(["--dry-run", "--sections", "attention,kernels"]) == 0
    (table,) = tmp_path.glob("*.csv")
    told = {(row["what"], row["mode"]) for row in read_rows(table)}
    assert {("self", "ours"), ("self", "flash"), ("cross", "cudnn")} <= told
    assert {
        (what, "torch") for what in ("group_norm_silu", "layer_norm", "geglu", "geglu_linear", "guided_step")
    } <= told
    assert any(what == "fastest" for what, _ in told)


def test_every_shape_of_both_networks_once_and_those_with_targets_first() -> None:
    found = shapes()
    assert len(found) == len(set(found)) >= 48
    cases = [shape.case for shape in found]
    wanted = [target.rows[2] for target in TARGETS if target.rows[0] == "attention"]
    assert all(cases.index(case) < 6 for case in wanted)
    assert {(shape.heads, shape.d) for shape in found} >= {(8, 40), (8, 80), (8, 160), (5, 64), (10, 64), (20, 64)}
