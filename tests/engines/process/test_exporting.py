"""The export stage as a child: what it is given, what is heard of it, and how it may end.

Something quick stands in the stage's place, but for one refusal; tests/export has it for real.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from pathlib import Path

import pytest

from engines.errors import BackendError
from engines.process import exporting
from engines.process.exporting import check_extra, run_export, stop_exports
from pipeline.errors import CheckpointError


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that is run in the stage's place."""
    monkeypatch.setattr(exporting, "_ROOT", tmp_path)
    return tmp_path / "export.py"


def test_a_real_refusal_comes_through(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"^say where the artifact of {tmp_path} goes: --out DIR"):
        run_export([str(tmp_path)])


def test_its_arguments_and_its_output(stage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stage.write_text("import sys; print('traced', *sys.argv[1:]); print('a warning', file=sys.stderr)")
    run_export(["trace", "a file.json"])
    said = capfd.readouterr()
    assert said.out == "" and said.err == "traced trace a file.json\n", "standard output is the caller's own"


def test_its_last_word_is_passed_on(stage: Path) -> None:
    stage.write_text("import sys; print('a warning', file=sys.stderr); sys.exit('unet/config.json is missing')")
    with pytest.raises(CheckpointError, match=r"^unet/config.json is missing$"):
        run_export([])


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("print('a warning, not a reason', file=sys.stderr, flush=True); sys.exit(3)", 3),
        ("print('a warning, not a reason', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)", -9),
        ("sys.exit(1)", 1),
    ],
)
def test_an_end_without_a_last_word(stage: Path, code: str, status: int) -> None:
    stage.write_text(f"import os, sys; {code}")
    with pytest.raises(CheckpointError, match=f"^the export ended with status {status}$"):
        run_export([])
    assert not exporting._running


def test_it_holds_locks_and_can_be_stopped(stage: Path) -> None:
    stage.write_text("import os, signal, sys; os.write(int(sys.argv[1]), b'here'); signal.pause()")
    failed: list[BaseException] = []
    reads, writes = os.pipe()

    def run() -> None:
        try:
            run_export([str(writes)], [writes])
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert os.read(reads, 4) == b"here"
    stop_exports()
    thread.join(30)
    os.close(writes)
    assert os.read(reads, 1) == b"", "nobody else holds it"
    os.close(reads)
    assert not exporting._running and [str(error) for error in failed] == ["the export ended with status -15"]


@pytest.mark.parametrize("module", ["torch", "onnx"])
def test_a_missing_extra_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_extra("tracing")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(BackendError, match=r"^tracing needs the extra `export`: .* -m pip install -e '.*\[export\]'"):
        check_extra("tracing")
