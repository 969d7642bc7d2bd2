"""`python -m server` and `latentd serve` are one command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latentd import Client
from pipeline.checkpoint.opened import Checkpoint
from tests.support.server_process import FREE, ROOT, SLOW_LOAD, process


@pytest.mark.parametrize("start", [("-m", "server"), ("-m", "latentd", "serve")])
def test_both_names_of_the_server_are_one_command(start: tuple[str, ...], checkpoint: Checkpoint) -> None:
    with process(*start, checkpoint.path, "--steps", "3") as started:
        assert started.end() == 2
    assert started.err == [
        f"python {' '.join(start)}: there is no flag --steps; did you mean --max-steps? (see --help)"
    ]
    environment = {"LATENTD_MODEL": "nowhere", "LATENTD_SEATS": "3"}
    with process(*start, checkpoint.path, *FREE, environment=environment) as started:
        with Client(started.address()) as client:
            (model,) = client.models()
            assert (model.id, model.seats) == (checkpoint.path.name, 3)
        started.popen.send_signal(signal.SIGTERM)
        assert started.end() == 0
    assert started.err[-1].endswith("stopped")


def test_ctrl_c_of_latentd_serve_while_it_loads(checkpoint: Checkpoint) -> None:
    code = SLOW_LOAD.replace("from server.__main__ import main", "from latentd.__main__ import main")
    with process("-c", code, "serve", checkpoint.path, *FREE) as started:
        started.says("^loading$")
        started.popen.send_signal(signal.SIGINT)
        assert started.end() == 130
    assert started.err == ["interrupted"]


def test_with_the_client_alone_latentd_serve_says_what_to_install(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "latentd", tmp_path / "latentd")
    (tmp_path / "server.py").write_text("raise AssertionError('another one')")
    done = subprocess.run(
        [sys.executable, "-m", "latentd", "serve", "x"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    told = (
        "latentd serve needs the server, and only the client is installed: install latentd's wheel or a clone with "
        "the extra cpu (pip install 'latentd-VERSION-py3-none-any.whl[cpu]')\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)


def test_latentd_serve_takes_its_own_server_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text("raise AssertionError('another one')")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "latentd", "serve", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "latentd 0.1.0\n", "")
