from __future__ import annotations

from pathlib import Path

import pytest

from engines.machine.memory_limit import available_memory


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
