"""Building: an exit or a full disk at any operation costs work, never the truth; the same command finishes it."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from engines.artifact.opened import Artifact
from engines.build.building import apart_from, build_all, build_one
from engines.cache import devices, disk, entries, lock, store
from engines.cache.disk import DiskError
from engines.process.apart import ApartError
from pipeline.errors import CheckpointError
from tests.support.stub_builder import MAKER, ROWS, StubBuilder, build, engine

ROOT = Path(__file__).parents[3]
FEW = (2, 3)  # of the loops over every operation: the first engine and one after it


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def whole(artifact: Artifact, rows: tuple[int, ...] = ROWS) -> list[bool]:
    """Which engines are in the store; Damaged is raised for a half one."""
    builder = StubBuilder(artifact)
    return [store.verify(builder.identity(order)) is not None for order in builder.orders(rows, [])]


def check(artifact: Artifact, folder: Path, rows: tuple[int, ...] = ROWS) -> None:
    """Every engine is there, right to the byte, and nothing else."""
    builder = StubBuilder(artifact)
    for order in builder.orders(rows, []):
        found = store.load(builder.identity(order))
        assert found is not None and found.data == engine(order)
        assert found.manifest["facts"] == {"rows": order.shapes["sample"][0]}
    assert len(entries.entries(folder / "engines")) == len(rows)
    assert not list((folder / "engines").glob(".[no]*"))
    for path in entries.entries(folder / "engines"):
        lock.let_go(path)


def test_built_once_and_then_valid(artifact: Artifact, folder: Path) -> None:
    built, said = build(artifact)
    assert [each.new for each in built] == [True] * 3
    assert said[0] == "tiny for stub on cpu: 3 engines, 3 to build"
    assert said[1] == "  build  unet sample 2x4" and "[1/3] unet: half done" in said
    assert any(line.startswith("[3/3] unet sample 4x4: built in 0.0 s, 1.0 kB") for line in said)
    assert any("about 0 s left" in line for line in said), "after the first there is something to go by"
    built, said = build(artifact)
    assert [each.new for each in built] == [False] * 3 and all(each.manifest for each in built)
    assert said == [
        "tiny for stub on cpu: 3 engines, 0 to build",
        *(f"  valid  unet sample {rows}x4" for rows in ROWS),
    ]
    check(artifact, folder)


def test_what_is_damaged_is_named_and_built_again(artifact: Artifact, folder: Path) -> None:
    build(artifact)
    path = entries.entries(folder / "engines")[0] / "engine"
    path.write_bytes(b"x" + path.read_bytes()[1:])
    built, said = build(artifact)
    assert [each.new for each in built].count(True) == 1
    assert said[0] == f"{path} is damaged (its SHA-256 is not the one in its manifest); building it again"
    check(artifact, folder)


class DeadError(BaseException):
    """The process is gone: after the first, no operation does anything, clearing up neither."""


def dies(monkeypatch: pytest.MonkeyPatch, at: int) -> list[int]:
    count = [0]

    def before(doing: str, path: Path) -> None:
        count[0] += 1
        if count[0] > at:
            raise DeadError

    monkeypatch.setattr(disk, "before", before)
    return count


def fails(monkeypatch: pytest.MonkeyPatch, at: int, for_good: bool) -> None:
    count = [0]

    def before(doing: str, path: Path) -> None:
        count[0] += 1
        if doing != "remove" and (count[0] > at if for_good else count[0] == at + 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "before", before)


def operations(artifact: Artifact, folder: Path) -> int:
    """Of a build from nothing."""
    with pytest.MonkeyPatch.context() as patch:
        count = dies(patch, 10**9)
        build(artifact, rows=FEW)
    forget(folder)
    assert count[0] > 20
    return count[0]


def forget(folder: Path) -> None:
    for path in entries.entries(folder / "engines"):
        lock.let_go(path)
    disk.remove(folder)


@pytest.mark.parametrize("damaged", [False, True])
def test_an_exit_at_every_operation(artifact: Artifact, folder: Path, damaged: bool) -> None:
    """`damaged`: there was an engine, to be replaced."""
    for at in range(operations(artifact, folder) + 3):
        if damaged:
            build(artifact, rows=FEW)
            for path in entries.entries(folder / "engines"):
                (path / "engine").write_bytes(b"damaged")
        with pytest.MonkeyPatch.context() as patch:
            dies(patch, at)
            try:
                build(artifact, rows=FEW)
            except DeadError:
                pass
            else:
                assert at >= 20
        for path in entries.entries(folder / "engines"):
            lock.let_go(path)
            if not damaged or (path / "engine").read_bytes() != b"damaged":
                continue
            disk.remove(path)  # known to be damaged; those that are there else must be whole
        whole(artifact, FEW)
        build(artifact, rows=FEW)
        check(artifact, folder, FEW)
        forget(folder)


@pytest.mark.parametrize("for_good", [False, True])
def test_a_full_disk_at_every_operation(artifact: Artifact, folder: Path, for_good: bool) -> None:
    told = set()
    for at in range(operations(artifact, folder)):
        with pytest.MonkeyPatch.context() as patch:
            fails(patch, at, for_good)
            try:
                build(artifact, rows=FEW)
            except DiskError as error:
                message = str(error)
                assert message.endswith("No space left on device") and "\n" not in message and str(folder) in message
                told.add(message.split()[1])
        whole(artifact, FEW)
        built, _ = build(artifact, rows=FEW)
        assert all(each.manifest for each in built)
        check(artifact, folder, FEW)
        forget(folder)
    assert told == {"make", "write", "sync", "rename"}


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("abort", "its process was ended by SIGABRT; its last words: compiler: assertion failed"),
        ("refuse", "no kernel for 3 rows"),
        ("nothing", "its process wrote no engine"),
    ],
)
def test_a_compilers_crash_costs_one_engine(artifact: Artifact, folder: Path, how: str, why: str) -> None:
    built, said = build(artifact, how, apart=True)
    assert [each.new for each in built] == [True, False, True] and built[1].manifest is None
    assert built[1].why == f"unet sample 3x4 was not built: {why}" and built[1].why in said
    assert "[1/3] unet: half done" in said
    assert whole(artifact) == [True, False, True] and not list(folder.rglob(".*"))
    built, said = build(artifact, "good")
    assert [each.new for each in built] == [False, True, False]
    check(artifact, folder)


def test_a_compilers_full_disk_ends_the_work(artifact: Artifact, folder: Path) -> None:
    with pytest.raises(ApartError, match="No space left on device") as caught:
        build(artifact, "full", apart=True)
    assert caught.value.final and whole(artifact) == [True, False, False]


def test_an_artifact_that_changed_meanwhile(artifact: Artifact, tmp_path: Path) -> None:
    compile = apart_from(dataclasses.replace(artifact, digest="0" * 64), MAKER, "cpu", "good")
    builder = StubBuilder(artifact)
    (built, *_) = build_all(artifact, builder, builder.orders((2,), []), compile, lambda _: None)
    assert "has changed since the build began" in built.why
    job: dict[str, Any] = {"folder": str(artifact.folder), "digest": ""}
    with pytest.raises(CheckpointError, match="has changed"):
        build_one(job, print)


def test_two_at_once_build_once(artifact: Artifact, folder: Path) -> None:
    """The second waits, saying for whom, and then uses what the first has made."""
    builder = StubBuilder(artifact)
    orders, second, said = builder.orders((2,), []), [], []
    started = threading.Event()

    def tell(line: str) -> None:
        said.append(line)
        if "waiting for process" in line:
            started.set()

    def slow(order, out, new, tick, say):
        never = lambda *_: pytest.fail("built twice")  # noqa: E731
        thread.start() if not thread.is_alive() else never()
        assert started.wait(60)
        return builder.build(order, out, say)

    def other() -> None:
        second.extend(build_all(artifact, builder, orders, slow, tell))

    thread = threading.Thread(target=other)
    (first,) = build_all(artifact, builder, orders, slow, lambda _: None)
    thread.join(60)
    assert first.new and len(second) == 1 and not second[0].new and second[0].manifest == first.manifest
    assert any(f"waiting for process {os.getpid()}, which makes {folder / 'engines'}" in line for line in said)
    assert any("built by another process" in line for line in said)


KILLED = """
import os, sys
from engines.cache import disk
from engines.artifact.opened import open_artifact
from pathlib import Path
from tests.support.stub_builder import build
left = int(sys.argv[2])
def before(doing, path):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
disk.before = before
build(open_artifact(Path(sys.argv[1])), apart=True)
"""


def test_a_real_exit(artifact: Artifact, folder: Path) -> None:
    """With locks and children as they are: the work goes on where it ended, without waiting for the dead."""
    for at in (3, 14):  # operations of this process: in the first engine, and in the second
        command = [sys.executable, "-c", KILLED, str(artifact.folder), str(at)]
        assert subprocess.run(command, cwd=ROOT, check=False).returncode == 9
    assert whole(artifact) == [True, False, False] and list(folder.rglob(".new-*"))
    built, said = build(artifact)
    assert [each.new for each in built] == [False, True, True] and not [line for line in said if "waiting" in line]
    check(artifact, folder)


def test_time_left_comes_from_earlier_builds(artifact: Artifact) -> None:
    what = {"what": "seconds a byte", "backend": "stub", "target": "cpu", "network": "unet"}
    length = sum(path.stat().st_size for path in (artifact.folder / "unet").glob("*.safetensors"))
    devices.remember(devices.this_cpu(), what, 100 / length)
    _, said = build(artifact)
    assert "[1/3] unet sample 2x4: building; about 5 min left" in said
