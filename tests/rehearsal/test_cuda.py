"""All host code of the CUDA path at full size: devices, shapes, types, strides and launches; no numbers, no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def rehearse(*words: str) -> str:
    """What the process said; it may say anything, but must end well."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.rehearsal", *words]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode == 77:
        pytest.skip(ran.stdout + ran.stderr)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    return ran.stdout


@pytest.mark.parametrize(
    ("name", "pixels", "precision"),
    [("SD 1.5", "fast", "auto"), pytest.param("SD 2.1", "exact", "bf16", marks=pytest.mark.exhaustive)],
)
def test_from_weights_to_pixels(name: str, pixels: str, precision: str) -> None:
    said = rehearse("serve", name, pixels, precision, "2")
    variants = {kernel: int(count) for kernel, count in re.findall(r"^(\w+): (\d+) variants$", said, re.MULTILINE)}
    # Every kernel of the path was launched; what depends on rows would be compiled again for every bucket.
    assert set(variants) >= {"attention_kernel", "layer_norm_kernel", "geglu_kernel", "guided_step_kernel"}
    assert sum(variants.values()) < 80, variants


@pytest.mark.parametrize(
    "words",
    [
        "ceilings,budget",
        pytest.param("kernels kernels", marks=pytest.mark.exhaustive),  # test_gpu_sections runs its cases on a CPU
        "vae decoding",
        "first_kernels,first_picture first",
        pytest.param("vae networks", marks=pytest.mark.exhaustive),  # of which it launches the decoding alone
    ],
)
def test_sections_of_gpu_check(words: str) -> None:
    """The quick ones; its figures are nonsense, but no case may fail, nor launch what is not compiled ahead of it."""
    assert rehearse("section", *words.split()).count("\n") > 3


def test_processes_share_what_is_compiled_ahead() -> None:
    assert "attention: " in rehearse("shares", "attention")


def test_what_the_docs_say_of_memory() -> None:
    said = rehearse("memory", "SD 1.5", "8")
    assert "8 seats 0.303, a step of 16 rows 0.92 more" in said, said  # docs/gpu.md
