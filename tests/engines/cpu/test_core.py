"""OpenVINO's Core: what it leaves behind on the threads that used it."""

from __future__ import annotations

import subprocess
import sys

from pipeline.checkpoint.opened import Checkpoint

_TWO_MODELS = """
import os, signal, sys
from pathlib import Path
from engines.cpu.openvino import OpenVinoBackend
from pipeline.checkpoint.opened import open_checkpoint

first, second = (OpenVinoBackend(open_checkpoint(Path(sys.argv[1])), "f32") for _ in range(2))
del first
del second
signal.signal(signal.SIGTERM, lambda number, frame: print("asked to end", flush=True))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_is_heard_after_two_models_have_gone(checkpoint: Checkpoint) -> None:
    """Fails where each model has a Core: that process ends by SIGSEGV."""
    ended = subprocess.run(
        [sys.executable, "-c", _TWO_MODELS, str(checkpoint.source.path)], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, "asked to end\n"), ended.stderr
