"""Cores: the affinity mask, cut by the quotas of the process's cgroups, of either version."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engines.machine.cores import available_cores


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
    assert available_cores(tmp_path, tmp_path / "proc") == cores


@pytest.mark.parametrize(
    ("quota", "period", "cores"), [("-1", "100000", 6), ("300000", "100000", 3), ("20000", "100000", 1), ("x", "y", 6)]
)
def test_version_one(tmp_path: Path, quota: str, period: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text(f"{period}\n")
    assert available_cores(tmp_path, tmp_path / "proc") == cores


def test_no_cgroup(tmp_path: Path) -> None:
    assert available_cores(tmp_path, tmp_path) == available_cores(tmp_path / "none", tmp_path / "none") == 6


def test_a_system_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert available_cores(tmp_path, tmp_path) == 3
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path, tmp_path) == 1


class System:
    """What a process is told of its cgroups, and the hierarchies that it sees."""

    def __init__(self, folder: Path) -> None:
        self.cgroup, self.process = folder / "cgroup", folder / "proc"
        self.cgroup.mkdir()
        self.process.mkdir()

    def at(self, cgroup: str, mountinfo: str = "") -> None:
        """The texts of /proc/self/cgroup and /proc/self/mountinfo; {} in the latter is the hierarchies' folder."""
        (self.process / "cgroup").write_text(cgroup)
        (self.process / "mountinfo").write_text(mountinfo.replace("{}", str(self.cgroup).replace(" ", "\\040")))

    def limit(self, place: str, quota: int | str, period: int = 100_000) -> None:
        """A quota in microseconds a period: cgroup v2's."""
        (self.cgroup / place).mkdir(parents=True, exist_ok=True)
        (self.cgroup / place / "cpu.max").write_text(f"{quota} {period}\n")

    def limit_v1(self, place: str, quota: int) -> None:
        (self.cgroup / place).mkdir(parents=True, exist_ok=True)
        (self.cgroup / place / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (self.cgroup / place / "cpu.cfs_period_us").write_text("100000\n")

    def cores(self) -> int:
        return available_cores(self.cgroup, self.process)


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


V2 = "30 24 0:26 / {} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
SERVICE = "0::/system.slice/latentd.service\n"


@pytest.mark.parametrize("mountinfo", ["", V2])
def test_a_services_own_quota(system: System, mountinfo: str) -> None:
    """CPUQuota=200%: it stands in the service's folder, and the root has none."""
    system.at(SERVICE, mountinfo)
    system.limit("system.slice/latentd.service", 200_000)
    assert system.cores() == 2


def test_the_quota_of_a_slice_above(system: System) -> None:
    system.at("0::/user.slice/user-1000.slice/session-3.scope\n", V2)
    system.limit("user.slice/user-1000.slice/session-3.scope", "max")
    system.limit("user.slice", 300_000)
    assert system.cores() == 3


def test_the_smallest_of_several_counts(system: System) -> None:
    system.at(SERVICE, V2)
    system.limit("system.slice/latentd.service", 400_000)
    system.limit("system.slice", 50_000, 25_000)
    system.limit("", 500_000)
    assert system.cores() == 2


def test_another_services_quota_does_not_count(system: System) -> None:
    system.at(SERVICE, V2)
    system.limit("system.slice/other.service", 100_000)
    system.limit("system.slice/latentd.service/child", 100_000)
    assert system.cores() == 6


def test_max_everywhere_is_no_limit(system: System) -> None:
    system.at(SERVICE, V2)
    for place in ("system.slice/latentd.service", "system.slice"):
        system.limit(place, "max")
    assert system.cores() == 6


@pytest.mark.parametrize(
    "cgroup", ["0::/kubepods.slice/pod1.slice/cri-1.scope\n", "0::/../../pod1.slice\n", "0::/\n", "", "nonsense\n"]
)
def test_a_container_sees_its_own_folder_as_the_top(system: System, cgroup: str) -> None:
    """The folder that it is told of is not mounted: the top is the container's own."""
    system.at(cgroup, V2)
    system.limit("", 100_000)
    assert system.cores() == 1


def test_version_one_in_its_own_folder_and_above(system: System) -> None:
    cgroup = "4:cpu,cpuacct:/system.slice/latentd.service\n2:memory:/other\n1:name=systemd:/system.slice\n0::/\n"
    system.at(cgroup, "31 25 0:27 / {}/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n")
    system.limit_v1("cpu,cpuacct", -1)
    system.limit_v1("cpu,cpuacct/system.slice/latentd.service", 500_000)
    assert system.cores() == 5
    system.limit_v1("cpu,cpuacct/system.slice", 200_000)
    assert system.cores() == 2


def test_version_one_of_a_container_with_a_part_of_the_hierarchy(system: System) -> None:
    """docker on cgroup v1: told the host's place, and sees the part of it that is mounted."""
    system.at("7:cpu,cpuacct:/docker/0a1b\n", "31 25 0:27 /docker/0a1b {}/cpu ro - cgroup cgroup rw,cpu,cpuacct\n")
    system.limit_v1("cpu", 300_000)
    assert system.cores() == 3
    system.at("7:cpu,cpuacct:/docker/0a1b/in\n", "31 25 0:27 /docker/0a1b {}/cpu ro - cgroup cgroup rw,cpu\n")
    system.limit_v1("cpu/in", 100_000)
    assert system.cores() == 1


def test_both_versions_at_once(system: System) -> None:
    """A hybrid system: CPU time is version one's, and version two is mounted beside it for systemd."""
    mountinfo = "41 31 0:38 / {}/unified rw - cgroup2 cgroup2 rw\n32 31 0:29 / {}/cpu rw - cgroup cgroup rw,cpu\n"
    system.at("1:cpu:/batch\n0::/system.slice/latentd.service\n", mountinfo)
    (system.cgroup / "unified/system.slice/latentd.service").mkdir(parents=True)
    system.limit_v1("cpu/batch", 400_000)
    assert system.cores() == 4


def test_a_mount_point_with_a_space(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    system = System(tmp_path / "a b")
    system.at(SERVICE, V2.replace("{}", "{}/here"))
    system.limit("here/system.slice/latentd.service", 100_000)
    assert system.cores() == 1


@pytest.mark.parametrize(
    "mountinfo", ["\n", "- - -\n", "1 2 3\n", " - cgroup2\n", "x" * 5000, "\xff \x00 - cgroup2 a b\n"]
)
def test_nonsense_is_passed_over(system: System, mountinfo: str) -> None:
    system.at("0::\n:::\n0::relative\n", mountinfo)
    assert system.cores() == 6
