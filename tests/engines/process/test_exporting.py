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


def test_exports_of_one_purpose_are_stopped_and_others_go_on(stage: Path) -> None:
    """A swap that is cancelled ends none that the model that is served waits for."""
    stage.write_text("import os, sys; out, back = map(int, sys.argv[1:]); os.write(out, b'.'); os.read(back, 1)")
    ended: dict[str, str] = {}
    here, says = os.pipe()
    waits, on = os.pipe()

    def run(what: str) -> None:
        exporting.purpose.set(what)
        try:
            run_export([str(says), str(waits)], [says, waits])
            ended[what] = "whole"
        except CheckpointError as error:
            ended[what] = str(error)

    threads = {what: threading.Thread(target=run, args=(what,)) for what in ("swap", "serving")}
    for thread in threads.values():
        thread.start()
        assert os.read(here, 1) == b"."
    stop_exports("swap")
    threads["swap"].join(30)
    os.write(on, b".")
    threads["serving"].join(30)
    for end in (here, says, waits, on):
        os.close(end)
    assert ended == {"swap": "the export ended with status -15", "serving": "whole"} and not exporting._running


@pytest.mark.parametrize("module", ["torch", "onnx"])
def test_a_missing_extra_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_extra("tracing")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(BackendError, match=r"^tracing needs the extra `export`: .* -m pip install -e '.*\[export\]'"):
        check_extra("tracing")
