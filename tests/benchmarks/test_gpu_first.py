"""gpu-first without a GPU: its stages in order, their limits, its rows as they come, whatever becomes of a stage."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import gpu_check, gpu_first
from benchmarks.gpu.frame.report import read_rows
from benchmarks.gpu.frame.sections import FIRST, FIRST_TOTAL
from benchmarks.gpu.sections.first_picture import png

ROOT = Path(__file__).parent.parent.parent


def test_its_limits_are_150_seconds() -> None:
    assert FIRST_TOTAL < 150 and sum(stage.seconds for stage in FIRST) < 150
    assert not any(stage.grace for stage in FIRST)


def test_a_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu_first.main(["--dry-run"]) == 0
    (table,) = tmp_path.glob("*.csv")
    rows = read_rows(table)
    assert list(dict.fromkeys(row["section"] for row in rows)) == [stage.name for stage in FIRST], "in order"
    kernels = ("cross", "group_norm_silu", "layer_norm", "geglu", "geglu_linear", "guided_step", "to_uint8")
    errors = {row["what"]: row["status"] for row in rows if row["what"].endswith(" error")}
    assert errors == {f"{kernel} error": "ok" for kernel in kernels}, "every kernel once"
    found = {(row["what"], row["mode"]) for row in rows if row["section"] == "first_steps" and row["status"] == "ok"}
    assert {(what, mode) for what in ("replay equals launch", "small company") for mode in ("fast", "exact")} <= found
    (picture,) = tmp_path.glob("*-first.png")
    assert np.asarray(Image.open(picture)).std() > 0
    said = capfd.readouterr().out
    assert "0 wrong, 0 skipped" in said and "not measured" not in said


def test_a_png(tmp_path: Path) -> None:
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    (tmp_path / "x.png").write_bytes(png(pixels))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), pixels)


# What a stage does instead of measuring, by its name: argv as benchmarks.gpu.frame.child has it.
STAGE = """
import faulthandler, os, signal, sys
from pathlib import Path
from benchmarks.gpu.frame.report import COLUMNS, stamp_of, write_row
faulthandler.register(signal.SIGUSR1)
name, words = sys.argv[1], sys.argv[2:]
word = lambda flag: words[words.index(flag) + 1]
files = [Path(words[i + 1]) for i, flag in enumerate(words) if flag == "--file"]
def row(what):
    stamp = stamp_of(word("--stamp")).values()
    write_row(files, [name, what, *[""] * (len(COLUMNS) - 2 - len(stamp)), *stamp])
row("begins")
Path(word("--state")).write_text("0\\n\\nfirst case")
if name == "first_kernels":
    print("all of its last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
if name == "first_steps":
    while True: signal.pause()
row("is done")
"""


def test_a_stage_that_crashes_and_one_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "stage.py"
    script.write_text(STAGE)
    popen = subprocess.Popen

    def started(command: list[str], **options):
        at = command.index("benchmarks.gpu.frame.child")
        environment = options.pop("env") | {"PYTHONPATH": str(ROOT)}
        return popen([sys.executable, "-u", str(script), *command[at + 1 :]], env=environment, **options)

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(gpu_check, "_RESTARTS", 1)
    monkeypatch.setattr(gpu_first, "FIRST", tuple(replace(stage, case_seconds=2) for stage in FIRST))
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu_first.main(["--dry-run"]) == 1
    (table,) = tmp_path.glob("*.csv")
    rows = [(row["section"], row["what"], row["case"], row["status"], row["note"]) for row in read_rows(table)]
    assert [row for row in rows if row[2] != "the rest"] == [
        ("first_machine", "begins", "", "", ""),
        ("first_machine", "is done", "", "", ""),
        ("first_kernels", "begins", "", "", ""),
        ("first_kernels", "case", "first case", "failed", "exit code -11"),
        ("first_steps", "begins", "", "", ""),
        ("first_steps", "case", "first case", "failed", "ended: 2 s in one case"),
        ("first_picture", "begins", "", "", ""),
        ("first_picture", "is done", "", "", ""),
    ]
    said = capfd.readouterr().out
    assert "all of its last words" in said and "Current thread" in said, "whole, and where it hung"
    assert table.with_suffix(".log").read_text().count("first case") >= 2
