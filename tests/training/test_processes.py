"""Two processes that torchrun starts have the gradients that one has with the whole batch, and the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gradients import gradients
from tests.support.training import tiny
from training.errors import TrainingError
from training.files import read_tensors
from training.processes import Processes
from training.run import Run

ROOT = Path(__file__).parents[2]
PHASES = ("contrastive", "autoencoder", "denoiser", "adapter", "classifier")


def test_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [*command, "-m", "tests.support.gradients", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    theirs, _ = read_tensors(tmp_path / "gradients.safetensors")
    ours = gradients(tmp_path, Processes())
    assert ours.keys() == theirs.keys() and len(ours) > 100
    largest = {phase: max(float(g.abs().max()) for n, g in ours.items() if n.startswith(phase)) for phase in PHASES}
    worst = 0.0
    for name, gradient in ours.items():
        # Sums of 8 and 8 are rounded otherwise than sums of 16. A bias of keys has no gradient but what rounding
        # leaves, as a softmax does not see it: hence the second term.
        scale = float(gradient.abs().max()) + 1e-3 * next(v for phase, v in largest.items() if name.startswith(phase))
        worst = max(worst, float((gradient - theirs[name]).abs().max()) / scale)
    assert worst < 1e-4, worst
    assert all(float(theirs[f"{phase} apart"]) == 0 for phase in PHASES), "a step has moved them apart"


def test_a_batch_without_equal_shares_is_refused(tmp_path: Path) -> None:
    assert [list(Processes(rank, 2).share(4)) for rank in (0, 1)] == [[0, 1], [2, 3]]
    with pytest.raises(TrainingError, match="a batch of 5 has no 2 equal shares; give batch a multiple of it"):
        Processes(0, 2).share(5)
    with pytest.raises(TrainingError, match="phases.contrastive: a batch of 16 has no 3 equal shares"):
        Run(tiny(), tmp_path / "run", Processes(0, 3), lambda line: None)
    assert not (tmp_path / "run").exists(), "said before anything is written"


def test_one_may_wait_long_for_what_another_does_alone() -> None:
    """Torch's own half an hour is over before the first one has encoded many large pictures."""
    code = (
        "import torch; from training import processes; processes.begin('cpu');"
        "from torch.distributed import distributed_c10d as c;"
        "print(c._get_default_group()._get_backend(torch.device('cpu')).options._timeout.total_seconds())"
    )
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | place, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) > 86400
