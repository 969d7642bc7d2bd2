"""The first use of a checkpoint, with something quick in the export's place; tests/export has it for real."""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engines import first_use
from engines.artifact import MANIFEST, Artifact
from engines.backend import BackendError
from engines.disk import DiskError
from engines.first_use import artifact_of, stop_exports
from pipeline.errors import CheckpointError
from tests.checkpoints import make_checkpoint

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny")


@pytest.fixture
def exports(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Exports become copies of a finished one; their commands."""
    commands: list[list[str]] = []

    def run(command: list[str], lock: int) -> None:
        commands.append(command)
        shutil.copytree(artifact.folder, command[command.index("--out") + 1])

    monkeypatch.setattr(first_use, "_run", run)
    return commands


def left_behind(cache: Path) -> list[Path]:
    """What an export made beside its result and forgot."""
    return [path for path in cache.rglob(".*")]


def test_once_and_then_found(checkpoint: Path, cache: Path, exports: list[list[str]], artifact: Artifact) -> None:
    first, second = artifact_of(checkpoint), artifact_of(checkpoint)
    assert first.digest == second.digest == artifact.digest and first.id == "tiny"
    assert first.folder.is_relative_to(cache / "artifacts")
    (command,) = exports
    assert command[0] == sys.executable and command[command.index("export") + 1] == str(checkpoint)
    assert not left_behind(cache)


def test_by_content_not_by_place(checkpoint: Path, tmp_path: Path, exports: list[list[str]]) -> None:
    first = artifact_of(checkpoint)
    moved = checkpoint.rename(tmp_path / "elsewhere")
    assert artifact_of(moved).digest == first.digest and len(exports) == 2, "its name is the model's name"
    (moved / "README.md").write_text("not read by an export")
    (moved / "whole-model.safetensors").write_bytes(b"nor this")
    artifact_of(moved)
    assert len(exports) == 2
    data = bytearray((moved / UNET).read_bytes())
    data[-1] ^= 1
    (moved / UNET).write_bytes(data)
    artifact_of(moved)
    assert len(exports) == 3
    (moved / "latentd.json").unlink()
    artifact_of(moved)
    assert len(exports) == 4


def test_a_damaged_one_is_made_again(
    checkpoint: Path, exports: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    first = artifact_of(checkpoint)
    (first.folder / UNET).write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        again = artifact_of(checkpoint)
    assert again.digest == first.digest and len(exports) == 2
    assert len(caplog.messages) == 1 and f"exporting again: {first.folder / UNET}" in caplog.messages[0]


def test_two_names_of_one_checkpoint(checkpoint: Path, tmp_path: Path, exports: list[list[str]]) -> None:
    """Each keeps its own: a model's id is its folder's name."""
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    assert [artifact_of(each).id for each in (checkpoint, other, checkpoint, other)] == ["tiny", "other"] * 2
    assert len(exports) == 2


def test_two_processes_export_once(
    checkpoint: Path, cache: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, inside, go_on = first_use._run, threading.Event(), threading.Event()

    def held(command: list[str], lock: int) -> None:
        inside.set()
        assert go_on.wait(30)
        run(command, lock)

    monkeypatch.setattr(first_use, "_run", held)
    monkeypatch.setattr(first_use.log, "info", lambda *_: go_on.set())  # "waiting for process ..., which makes ..."
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(artifact_of, checkpoint)
        assert inside.wait(30)
        second = pool.submit(artifact_of, checkpoint)
        assert first.result().digest == second.result().digest
    assert len(exports) == 1 and not left_behind(cache)


def test_an_orphaned_export_keeps_its_folder_until_it_ends(
    checkpoint: Path, cache: Path, exports: list[list[str]]
) -> None:
    folder = cache / "artifacts/.new-key-1"  # as it is when the server that began it was killed
    folder.mkdir(parents=True)
    number = os.open(folder, os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_EX)
    with subprocess.Popen(child("sys.stdin.read()"), stdin=subprocess.PIPE, pass_fds=[number]) as orphan:
        os.close(number)
        artifact_of(checkpoint)
        assert folder.exists()
        assert orphan.stdin
        orphan.stdin.close()
        orphan.wait(30)
    (checkpoint / "latentd.json").unlink()
    artifact_of(checkpoint)
    assert len(exports) == 2 and not left_behind(cache)


def test_a_result_that_cannot_be_kept(
    checkpoint: Path, cache: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DiskError, match="cannot rename to .*artifacts.*: No space left"):
        artifact_of(checkpoint)
    assert len(exports) == 1 and not left_behind(cache)


def test_an_export_that_fails_leaves_nothing(checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], lock: int) -> None:
        shutil.copytree(checkpoint, command[command.index("--out") + 1])
        raise CheckpointError("the disk is full")

    monkeypatch.setattr(first_use, "_run", run)
    with pytest.raises(CheckpointError, match="the disk is full"):
        artifact_of(checkpoint)
    assert not left_behind(cache) and not list(cache.rglob(MANIFEST))


@pytest.mark.parametrize("module", ["torch", "onnx"])
def test_a_missing_extra_is_named(checkpoint: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(BackendError) as caught:
        artifact_of(checkpoint)
    message = str(caught.value)
    assert str(checkpoint) in message and "pip install -e '.[export]'" in message
    assert f"make onnx MODEL={checkpoint}" in message


def test_an_artifact_needs_no_export(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_use, "_export", lambda *_: pytest.fail("exported"))
    assert artifact_of(artifact.folder).folder == artifact.folder


@pytest.mark.parametrize("what", ["nothing", "an empty folder"])
def test_what_is_no_model(tmp_path: Path, what: str) -> None:
    place = tmp_path / "place"
    if what != "nothing":
        place.mkdir()
    with pytest.raises(CheckpointError) as caught:
        artifact_of(place)
    assert str(place) in str(caught.value) and "diffusers' layout" in str(caught.value)


def test_what_cannot_be_served_is_refused_before_any_export(checkpoint: Path, exports: list[list[str]]) -> None:
    config = checkpoint / "vae/config.json"
    config.write_text(config.read_text().replace('"out_channels": 3', '"out_channels": 4'))
    with pytest.raises(CheckpointError, match="out_channels is 4"):
        artifact_of(checkpoint)
    assert not exports


def test_the_childs_last_word_is_passed_on() -> None:
    first_use._run([sys.executable, "-c", ""], 2)
    with pytest.raises(CheckpointError, match="^unet/config.json is missing$"):
        first_use._run(child("print('a warning', file=sys.stderr); sys.exit('unet/config.json is missing')"), 2)


@pytest.mark.parametrize(("code", "status"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", -9), ("sys.exit(1)", 1)])
def test_a_child_without_a_last_word(code: str, status: int) -> None:
    said = "" if status == 1 else "print('a warning, not a reason', file=sys.stderr, flush=True); "
    with pytest.raises(CheckpointError, match=f"^the export ended with status {status}$"):
        first_use._run(child(said + code), 2)
    assert not first_use._running


def child(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys; {code}"]


def test_a_real_refusal_comes_through(checkpoint: Path, cache: Path) -> None:
    (checkpoint / UNET).rename(checkpoint / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickle \(diffusion_pytorch_model.bin\)"):
        artifact_of(checkpoint)
    assert not left_behind(cache)


def test_exports_can_be_stopped() -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            first_use._run(child("import time; time.sleep(600)"), 2)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: len(first_use._running) == 1)
    stop_exports()
    thread.join(30)
    assert not thread.is_alive() and not first_use._running
    assert [str(error) for error in failed] == ["the export ended with status -15"]


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_relative_cache_is_the_same_for_the_child(
    checkpoint: Path, tmp_path: Path, exports: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTD_CACHE", os.path.join(".", "relative"))
    assert artifact_of(checkpoint).folder.is_relative_to(tmp_path / "relative")
    (command,) = exports
    assert Path(command[command.index("--out") + 1]).is_absolute()
