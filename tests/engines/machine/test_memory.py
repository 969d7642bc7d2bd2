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
    process, groups = tmp_path / "proc/self", tmp_path / "cgroup"
    process.mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:    1000000 kB\n")
    (process / "status").write_text("Name:\tx\nRssAnon:\t    2048 kB\n")
    assert held_memory(process) == 2 << 20 and free_memory(groups, process) == 1_000_000 << 10
    (process / "cgroup").write_text("4:memory:/a/b\n0::/c\n")
    for folder, names in (("c", ("memory.max", "memory.current")), ("memory/a", ("memory.limit_in_bytes",) * 2)):
        (groups / folder).mkdir(parents=True)
        for name in names:
            (groups / folder / name).write_text("max\n")
    (groups / "c/memory.max").write_text(f"{100 << 20}\n")
    (groups / "c/memory.current").write_text(f"{60 << 20}\n")
    (groups / "c/memory.stat").write_text(f"anon 5\ninactive_file {10 << 20}\n")
    assert free_memory(groups, process) == 50 << 20, "v2: what the kernel takes back is free"
    (groups / "memory/a/memory.limit_in_bytes").write_text(f"{80 << 20}\n")
    (groups / "memory/a/memory.usage_in_bytes").write_text(f"{60 << 20}\n")
    assert free_memory(groups, process) == 20 << 20, "v1, of a group above"
    (groups / "memory/a/memory.usage_in_bytes").write_text(f"{90 << 20}\n")
    assert free_memory(groups, process) == 0
