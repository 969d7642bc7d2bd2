"""Seats, UNet and picture through the Triton kernels themselves, in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.checkpoints import make_checkpoint


def interpreted(folder: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.interpreted", str(folder)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_step_and_a_picture_are_the_plain_ones(tmp_path: Path) -> None:
    """Heads of 32, which the attention kernel takes, and as little as possible of everything else."""
    unet = {"attention_head_dim": [1, 2], "block_out_channels": [32, 64], "layers_per_block": 1, "sample_size": 4}
    interpreted(make_checkpoint(tmp_path / "tiny", unet=unet))
