from __future__ import annotations

from pathlib import Path

import pytest

from engines.machine.memory import available_memory, free_memory, held_memory


@pytest.mark.parametrize(("content", "bytes"), [("max\n", 8 << 30), ("1073741824\n", 1 << 30), ("nonsense", 8 << 30)])
def test_the_smallest_limit_counts(tmp_path: Path, content: str, bytes: int) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal:       {8 << 20} kB\nMemFree:        1 kB\n")
    (tmp_path / "cgroup/memory").mkdir(parents=True)
    (tmp_path / "cgroup/memory.max").write_text(content)
    assert available_memory(tmp_path / "cgroup", tmp_path / "proc/self") == bytes
    (tmp_path / "cgroup/memory/memory.limit_in_bytes").write_text("1000")
    assert available_memory(tmp_path / "cgroup", tmp_path / "proc/self") == 1000


def test_where_nothing_says_so_there_is_no_number(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "cgroup", tmp_path / "proc/self") is None
    assert (available_memory() or 0) > 10**8


def test_what_is_free_is_what_the_tightest_limit_leaves(tmp_path: Path) -> None:
    """Pages of files that are not in use count as free: the kernel takes them back."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {8 << 20} kB\nMemAvailable: {4 << 20} kB\n")
    (tmp_path / "proc/self/status").write_text("Name:\tpython\nRssAnon:\t   2048 kB\n")
    (tmp_path / "cgroup").mkdir()
    assert free_memory(tmp_path / "cgroup", tmp_path / "proc/self") == 4 << 30
    for name, content in (("max", "1000\n"), ("current", "900\n"), ("stat", "anon 500\ninactive_file 300\n")):
        (tmp_path / f"cgroup/memory.{name}").write_text(content)
    assert free_memory(tmp_path / "cgroup", tmp_path / "proc/self") == 1000 - 900 + 300
    assert held_memory(tmp_path / "proc/self") == 2 << 20
