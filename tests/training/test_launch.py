"""Several processes that train one network start, speak and end as one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.training import TINY
from training.figures import read_figures
from training.launch import launch

ROOT = Path(__file__).parents[2]
TRAIN = [sys.executable, "-m", "training", "run"]


def started(recipe: Path, out: Path) -> subprocess.Popen[str]:
    command = [*TRAIN, str(recipe), "--out", str(out), "--processes", "2"]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def long_recipe(folder: Path) -> Path:
    """Write a recipe whose first phase ends no time soon, and saves nothing by itself."""
    place = folder / "long.yaml"
    place.write_text(
        TINY.read_text().replace("steps: 20, batch: 16, rate: 1e-3", "steps: 90000, batch: 16, rate: 1e-3")
    )
    place.write_text(place.read_text().replace("save_every: 7, log_every: 5", "save_every: 90000, log_every: 1"))
    return place


def stopped(folder: Path, how: signal.Signals) -> tuple[int, str]:
    """Send the parent a signal once both train, as the figures show; return its status and all that was said."""
    figures = folder / "run" / "contrastive" / "figures.csv"
    with started(long_recipe(folder), folder / "run") as parent:
        while not read_figures(figures):
            assert parent.poll() is None
            time.sleep(0.01)
        parent.send_signal(how)
        assert parent.stderr is not None
        words = parent.stderr.read()  # to its end: when nobody is left who could write there
    return parent.returncode, words


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_parent_ends_both_with_the_state_on_the_disk(tmp_path: Path, how: signal.Signals) -> None:
    code, words = stopped(tmp_path, how)
    assert code == 130 and words.count("the same command resumes") == 1 and "Traceback" not in words, words
    assert (tmp_path / "run" / "contrastive" / "state.safetensors").exists()


def test_what_both_find_wrong_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("data: {kind: shapes, sides: 16}\n")
    with started(tmp_path / "bad.yaml", tmp_path / "run") as parent:
        _, words = parent.communicate(timeout=120)
    assert parent.returncode == 2 and words.count("\n") == 1 and "data has no key 'sides'" in words, words


def test_one_that_fails_alone_is_heard_and_ends_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    """The first one would wait for ever."""
    code = "import os, sys, signal; os.environ['RANK'] == '1' and sys.exit('out of luck'); signal.pause()"
    started, wait = time.monotonic(), 0.2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.launch._GRACE", wait)
        assert launch([sys.executable, "-c", code], 2) == 1
    assert time.monotonic() - started < 60 and "out of luck" in capfd.readouterr().err


def test_children_stop_when_their_parent_is_killed(tmp_path: Path) -> None:
    code, words = stopped(tmp_path, signal.SIGKILL)
    assert code == -signal.SIGKILL and words.count("the same command resumes") == 1, words
    assert (tmp_path / "run" / "contrastive" / "state.safetensors").exists()
