"""Several processes that train one network start, speak and end as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.support.held import eventually
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    """Before NCCL is asked, which has no sentence for it."""
    (tmp_path / "cuda.yaml").write_text(TINY.read_text() + "\ndevice: cuda\n")
    with started(tmp_path / "cuda.yaml", tmp_path / "run") as parent:
        _, words = parent.communicate(timeout=120)
    assert parent.returncode == 2 and words == "error: device is cuda; torch sees no NVIDIA GPU here\n"


def test_one_that_fails_alone_is_heard_and_ends_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    """The first one would wait for ever."""
    code = "import os, sys, signal; os.environ['RANK'] == '1' and sys.exit('out of luck'); signal.pause()"
    started, wait = time.monotonic(), 0.2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.launch._GRACE", wait)
        assert launch([sys.executable, "-c", code], 2) == 1
    assert time.monotonic() - started < 60 and "out of luck" in capfd.readouterr().err


SHARES = """
import os, sys, time, torch
from training import processes
from training.__main__ import main
from training.errors import TrainingError
import training.__main__ as command

def run(given):
    joined = processes.begin("cpu")
    try:
        joined.wait()
        if joined.rank == 1:
            FAIL
        joined.mean(torch.zeros(1))
    finally:
        processes.end()

command._run = run
code = main(["run", "recipe.yaml"])
if os.environ["RANK"] == "1":
    time.sleep(1)  # on its way out
sys.exit(code)
"""


@pytest.mark.parametrize(
    "fails, code, words",
    [
        ("raise TrainingError('picture 7 is damaged')", 2, "error: picture 7 is damaged"),
        ("os.kill(os.getpid(), 9)", 1, "error: process 2 of 2 was ended by signal 9 (Killed)"),
    ],
)
def test_what_ended_one_is_heard_though_another_ends_sooner(
    capfd: pytest.CaptureFixture[str], fails: str, code: int, words: str
) -> None:
    """Whoever waits for one that fails ends at once, and before it."""
    assert launch([sys.executable, "-c", SHARES.replace("FAIL", fails)], 2) == code
    said = capfd.readouterr().err
    assert words in said and "Traceback" not in said, said


def test_the_first_one_killed_is_told() -> None:
    """As it is when the memory is full: it can say nothing, and what the others say is not shown."""
    code = (
        "import os, signal, sys; from training.launch import launch;"
        'c = \'import os; os.environ["RANK"] == "0" and os.kill(os.getpid(), 9)\';'
        "sys.exit(launch([sys.executable, '-c', c], 2))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "process 1 of 2 was ended by signal 9 (Killed)" in ended.stderr


# The second leaves its number as a link, which is there at once and whole; the first goes on when the second is gone.
STOPS = """
import os, sys, time
place = sys.argv[1]
if os.environ["RANK"] == "1":
    os.symlink(str(os.getpid()), place)
    print("stopped", file=sys.stderr)
    sys.exit(130)
try:
    while not os.path.lexists(place) or os.kill(int(os.readlink(place)), 0) is None:
        time.sleep(0.01)
except ProcessLookupError:
    print("the disk is full", file=sys.stderr)
sys.exit(2)
"""


def test_who_stopped_well_does_not_hide_who_could_not(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The first one writes the state, for which the others do not wait; when that fails, nothing has stopped well."""
    assert launch([sys.executable, "-c", STOPS, str(tmp_path / "second")], 2) == 2
    assert capfd.readouterr().err == "the disk is full\n"


# The signal is held back until it is waited for, and is the system's own after that.
CHILD = """
import os, pathlib, signal, sys, time
place, asked = pathlib.Path(os.environ["RANK"]), {signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, asked)
place.touch()
signal.sigwait(asked)
signal.pthread_sigmask(signal.SIG_UNBLOCK, asked)
place.unlink()
while not os.path.exists("go"):
    time.sleep(0.01)
sys.exit(130)
"""
# Leaves a file for each signal that it has heard.
PARENT = """
import itertools, pathlib, signal, sys
from training.launch import launch

numbers, handle = itertools.count(1), signal.signal

def noting(number, handler):
    def heard(*given):
        handler(*given)
        pathlib.Path(f"heard {next(numbers)}").touch()

    return handle(number, heard if callable(handler) else handler)

signal.signal = noting
sys.exit(launch([sys.executable, "-c", sys.argv[1]], 2))
"""


def test_a_second_signal_finds_nobody_on_the_way_out(tmp_path: Path) -> None:
    """Where it would be the system's own: who has written the state ends by the signal, and is taken for a failure."""

    def files() -> set[str]:
        return {path.name for path in tmp_path.iterdir()}

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD], cwd=tmp_path, env=environment) as parent:
        try:
            eventually(files, {"0", "1"})
            parent.send_signal(signal.SIGTERM)
            eventually(files, {"heard 1"})
            parent.send_signal(signal.SIGTERM)
            eventually(files, {"heard 1", "heard 2"})
        finally:
            (tmp_path / "go").touch()
    assert parent.returncode == 130


def test_children_stop_when_their_parent_is_killed(tmp_path: Path) -> None:
    code, words = stopped(tmp_path, signal.SIGKILL)
    assert code == -signal.SIGKILL and words.count("the same command resumes") == 1, words
    assert (tmp_path / "run" / "contrastive" / "state.safetensors").exists()
