"""Cores: the affinity mask, cut by the cgroup's quota of either version."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.cores import available_cores


@pytest.fixture(autouse=True)
def affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)


@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ("max 100000\n", 6),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),  # half a core more is a third thread's worth of waiting, not of work: two
        ("50000 100000\n", 1),
        ("1 100000\n", 1),
        ("4000000 100000\n", 6),
        ("", 6),
        ("nonsense\n", 6),
        ("1 2 3\n", 6),
        ("200000 0\n", 6),
        ("-5 100000\n", 6),
    ],
)
def test_version_two(tmp_path: Path, content: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("quota", "period", "cores"), [("-1", "100000", 6), ("300000", "100000", 3), ("20000", "100000", 1), ("x", "y", 6)]
)
def test_version_one(tmp_path: Path, quota: str, period: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text(f"{period}\n")
    assert available_cores(tmp_path) == cores


def test_no_cgroup(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == available_cores(tmp_path / "none") == 6


def test_a_system_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert available_cores(tmp_path) == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1
