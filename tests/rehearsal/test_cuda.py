"""All host code of the CUDA path at full size: devices, shapes, types, strides and launches; no numbers, no GPU."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# Each takes five seconds alone before it begins, so one process rehearses all that a run asks for.
WHOLE = [
    ("serve", "SD 2.1", "exact", "bf16", "2"),
    ("section", "kernels", "kernels"),  # test_gpu_sections runs its cases on a CPU
    ("section", "vae", "networks"),  # of which it launches the decoding alone
    ("section", "vae", "decoding"),
    ("section", "ceilings,budget"),
    ("memory", "SD 1.5", "8"),
]
USUAL = [
    ("serve", "SD 1.5", "fast", "auto", "2"),
    ("section", "first_kernels,first_picture", "first"),
    ("shares", "attention"),
]
ALL = USUAL + WHOLE
BROKEN = ("section", "nothing")


def rehearsed(*rehearsals: tuple[str, ...]) -> dict[str, tuple[int, str]]:
    """What each ended with and said, by its words; it may say anything."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = " -- ".join(map(shlex.join, rehearsals))
    command = [sys.executable, "-m", "tests.rehearsal", *shlex.split(words)]
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if ran.returncode == 77:
        pytest.skip(ran.stdout)
    said, begins = {}, 0
    for end in re.finditer(r"^== (-?\d+) (.*)$\n", ran.stdout, re.MULTILINE):
        said[end[2]] = int(end[1]), ran.stdout[begins : end.start()]
        begins = end.end()
    assert len(said) == len(rehearsals), ran.stdout[-4000:]
    return said


@pytest.fixture(scope="module")
def said(request: pytest.FixtureRequest) -> Callable[..., str]:
    """Return what a rehearsal said that ended with a status: well, if not told otherwise."""
    every = rehearsed(BROKEN, *(ALL if request.config.getoption("exhaustive") else USUAL))

    def of(*words: str, status: int = 0) -> str:
        code, output = every[shlex.join(words)]
        assert code == status, output[-4000:]
        return output

    return of


def words(what: str) -> list[object]:
    """Parameters of a test: the words of each rehearsal of a kind."""
    return [
        pytest.param(each[1:], id=" ".join(each[1:]), marks=[pytest.mark.exhaustive] if each in WHOLE else [])
        for each in ALL
        if each[0] == what
    ]


@pytest.mark.parametrize("model", words("serve"))
def test_from_weights_to_pixels(model: tuple[str, ...], said: Callable[..., str]) -> None:
    output = said("serve", *model)
    variants = {kernel: int(count) for kernel, count in re.findall(r"^(\w+): (\d+) variants$", output, re.MULTILINE)}
    # Every kernel of the path was launched; what depends on rows would be compiled again for every bucket.
    assert set(variants) >= {"attention_kernel", "layer_norm_kernel", "geglu_kernel", "guided_step_kernel"}
    assert sum(variants.values()) < 80, variants


@pytest.mark.parametrize("sections", words("section"))
def test_sections_of_gpu_check(sections: tuple[str, ...], said: Callable[..., str]) -> None:
    """The quick ones; its figures are nonsense, but no case may fail, nor launch what is not compiled ahead of it."""
    assert said("section", *sections).count("\n") > 3


def test_processes_share_what_is_compiled_ahead(said: Callable[..., str]) -> None:
    assert "attention: " in said("shares", "attention")


@pytest.mark.exhaustive
def test_what_the_docs_say_of_memory(said: Callable[..., str]) -> None:
    output = said("memory", "SD 1.5", "8")
    assert "8 seats 0.303, a step of 16 rows 0.92 more" in output, output  # docs/gpu.md


def test_what_fails_is_told_and_the_others_are_rehearsed_all_the_same(said: Callable[..., str]) -> None:
    assert "Error" in said(*BROKEN, status=1)
