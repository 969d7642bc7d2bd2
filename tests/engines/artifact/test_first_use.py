"""The artifact that plans are built from, with something quick in the export's place; tests/export has it for real."""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engines.artifact import first_use
from engines.artifact.first_use import artifact_of
from engines.artifact.opened import MANIFEST, Artifact
from engines.cache.disk import DiskError
from engines.errors import BackendError
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.errors import CheckpointError
from tests.support.checkpoints import make_checkpoint
from tests.support.original import make_folder, write_original

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny")


@pytest.fixture
def exports(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Exports become copies of a finished one; their arguments."""
    every: list[list[str]] = []

    def run(arguments: Sequence[str], held: Sequence[int]) -> None:
        every.append([*arguments])
        shutil.copytree(artifact.folder, arguments[arguments.index("--out") + 1])

    monkeypatch.setattr(first_use, "run_export", run)
    return every


def artifact_at(path: Path) -> Artifact:
    return artifact_of(open_checkpoint(path))


def left_behind(cache: Path) -> list[Path]:
    """What an export made beside its result and forgot."""
    return [path for path in cache.rglob(".*")]


def test_once_and_then_at_hand(folder: Path, cache: Path, exports: list[list[str]], artifact: Artifact) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    first, second = artifact_at(folder), artifact_at(folder)
    assert first.digest == second.digest == artifact.digest and first.id == "tiny"
    assert first.folder.is_relative_to(cache / "artifacts")
    ((model, flag, out),) = exports
    assert model == str(folder) and flag == "--out" and Path(out).name == "tiny"
    assert not left_behind(cache) and {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_by_content_not_by_place(folder: Path, tmp_path: Path, exports: list[list[str]]) -> None:
    first = artifact_at(folder)
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere/tiny")
    assert artifact_at(moved).digest == first.digest and len(exports) == 1
    (moved / "README.md").write_text("not read by an export")
    (moved / "whole-model.safetensors").write_bytes(b"nor this")
    artifact_at(moved)
    assert len(exports) == 1
    data = bytearray((moved / UNET).read_bytes())
    data[-1] ^= 1
    (moved / UNET).write_bytes(data)
    artifact_at(moved)
    assert len(exports) == 2
    (moved / "latentd.json").unlink()
    artifact_at(moved)
    assert len(exports) == 3


def test_two_names_of_one_checkpoint(folder: Path, tmp_path: Path, exports: list[list[str]]) -> None:
    """Each keeps its own: a model's id is its folder's name."""
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    assert [artifact_at(each).id for each in (folder, other, folder, other)] == ["tiny", "other"] * 2
    assert len(exports) == 2


def test_a_single_file_keeps_its_prediction(tmp_path: Path, exports: list[list[str]]) -> None:
    """It does not tell what its UNet predicts, so whoever opened it does."""
    folder = make_folder(tmp_path / "folder", "sd2", levels=2, layers=1)
    path = write_original(folder, "sd2", tmp_path / "one.safetensors", levels=2, layers=1)
    for prediction in ("v_prediction", "epsilon"):
        artifact_of(open_checkpoint(path, prediction))
    assert [each[:1] + each[3:] for each in exports] == [
        [str(path), "--prediction", prediction] for prediction in ("v_prediction", "epsilon")
    ]


def test_a_damaged_one_is_made_again(folder: Path, exports: list[list[str]], caplog: pytest.LogCaptureFixture) -> None:
    first = artifact_at(folder)
    (first.folder / UNET).write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        again = artifact_at(folder)
    assert again.digest == first.digest and len(exports) == 2
    assert len(caplog.messages) == 1 and f"exporting again: {first.folder / UNET}" in caplog.messages[0]


def test_two_processes_export_once(
    folder: Path, cache: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, inside, go_on = first_use.run_export, threading.Event(), threading.Event()

    def held(arguments: Sequence[str], locks: Sequence[int]) -> None:
        inside.set()
        assert go_on.wait(30)
        run(arguments, locks)

    monkeypatch.setattr(first_use, "run_export", held)
    monkeypatch.setattr(first_use.log, "info", lambda *_: go_on.set())  # "waiting for process ..., which makes ..."
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(artifact_at, folder)
        assert inside.wait(30)
        second = pool.submit(artifact_at, folder)
        assert first.result().digest == second.result().digest
    assert len(exports) == 1 and not left_behind(cache)


def test_an_orphaned_export_keeps_its_folder_until_it_ends(folder: Path, cache: Path, exports: list[list[str]]) -> None:
    new = cache / "artifacts/.new-key-1"  # as it is when the process that began it was killed
    new.mkdir(parents=True)
    number = os.open(new, os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_EX)
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[number]) as orphan:
        os.close(number)
        artifact_at(folder)
        assert new.exists()
        assert orphan.stdin
        orphan.stdin.close()
        orphan.wait(30)
    (folder / "latentd.json").unlink()
    artifact_at(folder)
    assert len(exports) == 2 and not left_behind(cache)


def test_a_result_that_cannot_be_kept(
    folder: Path, cache: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DiskError, match=r"cannot rename to .*artifacts.*: No space left"):
        artifact_at(folder)
    assert len(exports) == 1 and not left_behind(cache)


def test_an_export_that_fails_leaves_nothing(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(arguments: Sequence[str], held: Sequence[int]) -> None:
        shutil.copytree(folder, arguments[arguments.index("--out") + 1])
        raise CheckpointError("the disk is full")

    monkeypatch.setattr(first_use, "run_export", run)
    with pytest.raises(CheckpointError, match="the disk is full"):
        artifact_at(folder)
    assert not left_behind(cache) and not list(cache.rglob(MANIFEST))


def test_a_missing_extra_is_named(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    with pytest.raises(BackendError, match=f"exporting {folder} needs the extra `export`: .* -m pip install"):
        artifact_at(folder)
    assert not cache.exists()


def test_an_artifact_needs_no_export(artifact: Artifact, exports: list[list[str]]) -> None:
    assert artifact_at(artifact.folder) == artifact and not exports


def test_an_artifact_that_was_touched_is_refused(artifact: Artifact, tmp_path: Path, exports: list[list[str]]) -> None:
    """It could be exported again, but whoever vouched for it would not know."""
    folder = Path(shutil.copytree(artifact.folder, tmp_path / "touched"))
    (folder / "latentd.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not the file that the manifest vouches for"):
        artifact_at(folder)
    assert not exports


def test_a_relative_cache_is_the_same_for_the_child(
    folder: Path, tmp_path: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTD_CACHE", os.path.join(".", "relative"))
    assert artifact_at(folder).folder.is_relative_to(tmp_path / "relative")
    (arguments,) = exports
    assert Path(arguments[2]).is_absolute()
