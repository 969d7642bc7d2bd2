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


V1 = "36 32 0:31 {root} {mount} rw,nosuid shared:16 - cgroup cgroup rw,memory\n"


@pytest.mark.parametrize(
    ("place", "root", "mount", "limited"),
    [
        ("/system.slice/latentd.service", "/", "elsewhere/memory", "elsewhere/memory/system.slice/latentd.service"),
        ("/system.slice/latentd.service", "/", "elsewhere/memory", "elsewhere/memory/system.slice"),
        ("/docker/0a1b", "/docker/0a1b", "cgroup/memory", "cgroup/memory"),
        ("/docker/0a1b/in", "/docker/0a1b", "cgroup/memory", "cgroup/memory/in"),
        ("/kubepods/pod1/0a1b", "/kubepods/pod1/0a1b", "elsewhere/m", "elsewhere/m"),
    ],
)
def test_version_one_counts_where_it_is_mounted(
    tmp_path: Path, place: str, root: str, mount: str, limited: str
) -> None:
    """A service's or a slice's own limit, wherever the hierarchy is; a container sees its own part of it."""
    process, groups = tmp_path / "proc/self", tmp_path / "cgroup"
    process.mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {8 << 20} kB\nMemAvailable: {4 << 20} kB\n")
    (process / "cgroup").write_text(f"9:memory:{place}\n4:cpu,cpuacct:/other\n0::/unified\n")
    (process / "mountinfo").write_text(V1.format(root=root, mount=tmp_path / mount))
    assert available_memory(groups, process) == 8 << 30 and free_memory(groups, process) == 4 << 30
    for folder, limit in ((tmp_path / mount, 0x7FFFFFFFFFFFF000), (tmp_path / limited, 1 << 30)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")  # the first is v1's word for none
        (folder / "memory.usage_in_bytes").write_text(f"{900 << 20}\n")
        (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {200 << 20}\n")
    assert available_memory(groups, process) == 1 << 30
    assert free_memory(groups, process) == (1 << 30) - (900 << 20) + (200 << 20)
    other = tmp_path / mount / "other"
    other.mkdir()
    (other / "memory.limit_in_bytes").write_text("1000\n")
    assert available_memory(groups, process) == 1 << 30, "another group's is not ours"
