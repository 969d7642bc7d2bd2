"""Whole pictures of every sampler: diffusers' pipeline draws the same, on three networks and two backends.

SD 1.5's and SD 2.1's topologies are at a fifth of their width. The first has its UNet in shards and its VAE under old
names, the second its weights as they come; single files are converted bit for bit into such folders
(tests/export/test_single_file.py).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines.choice import Choice
from engines.commands.compare import psnr
from engines.generate import latents_of
from engines.model import Model, load
from pipeline.arrays import F32, to_pixels
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from pipeline.samplers import SAMPLERS
from tests.support.diffusers_pipeline import Diffusers
from tests.support.topologies import make_topology

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

PROMPT, NEGATIVE = "a red apple", "the blue cat"
GUIDANCE, SEED = 4.0, 11
NETWORKS, BACKENDS, STEPS = ["tiny", "sd1", "sd2"], ["torch", "onnxruntime"], [5, 11]
# Every sampler is run on the tiny network with both backends. What a network computes does not depend on the sampler,
# so the large ones meet one of each kind, of which the next step depends on the last: none, one before it, and noise.
KINDS = ["ddim", "dpmpp_2m_karras", "euler_a"]
CHOSEN = {("tiny", sampler, BACKENDS[number % 2], STEPS[-1]) for number, sampler in enumerate(SAMPLERS)}
CHOSEN |= {("tiny", sampler, BACKENDS[1 - number % 2], STEPS[0]) for number, sampler in enumerate(SAMPLERS)}
CHOSEN |= set(itertools.product(["sd1", "sd2"], KINDS, BACKENDS, STEPS[:1]))
ROWS = [
    pytest.param(*row, marks=() if row in CHOSEN else pytest.mark.exhaustive)
    for row in itertools.product(NETWORKS, SAMPLERS, BACKENDS, STEPS)
]
SAME_EQUATION = ({"ddim", "euler"}, {"ddpm", "euler_a"})  # in other variables


class Network:
    """diffusers' pipeline and our models of one checkpoint; what they draw is drawn once."""

    def __init__(self, name: str, checkpoint: Checkpoint) -> None:
        self.name, self.theirs = name, Diffusers(checkpoint)
        # One thread, as conftest has it: beside others torch's threads only spin.
        self.models: dict[str, Model] = {name: load(checkpoint, Choice(name, "f32", threads=1)) for name in BACKENDS}
        self.latents = functools.cache(self._latents)

    def _latents(self, backend: str, sampler: str, steps: int, seed: int = SEED) -> F32:
        return latents_of(self.models[backend], PROMPT, NEGATIVE, **asked(sampler, steps, seed))

    def counter_examples(self, sampler: str, backend: str, steps: int) -> list[F32]:
        """Return the latents of a sampler that is another equation, one that is drawn of this network anyhow."""
        rows = [row.values for row in ROWS if not row.marks]
        names = [other for name, other, *where in rows if (name, *where) == (self.name, backend, steps)]
        others = [other for other in names if other != sampler and {other, sampler} not in SAME_EQUATION]
        return [self.latents(backend, other, steps) for other in others[:1]]


def asked(sampler: str, steps: int, seed: int = SEED) -> dict[str, Any]:
    return {"seed": seed, "steps": steps, "guidance": GUIDANCE, "sampler": sampler}


@pytest.fixture(scope="module")
def networks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Network]:
    def checkpoint(name: str) -> Checkpoint:
        if name == "sd2":
            return open_checkpoint(make_topology("sd2", tmp_path_factory.mktemp("sd2") / "sd2"))
        return request.getfixturevalue({"tiny": "checkpoint", "sd1": "sd1_checkpoint"}[name])

    return functools.cache(lambda name: Network(name, checkpoint(name)))


def apart(got: F32, wanted: F32) -> float:
    """Return the largest difference as a part of the largest value."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize(("name", "sampler", "backend", "steps"), ROWS)
def test_latents_and_picture_are_diffusers(
    networks: Callable[[str], Network], name: str, sampler: str, backend: str, steps: int
) -> None:
    """A stochastic sampler's noise comes from the seed's generator, in the pipeline's order."""
    network, options = networks(name), asked(sampler, steps)
    wanted, picture = (draw(PROMPT, NEGATIVE, **options) for draw in (network.theirs.latents, network.theirs.generate))
    got = network.latents(backend, sampler, steps)
    assert apart(got, wanted) < 1e-3
    assert psnr(to_pixels(network.models[backend].backend.decode(got)), picture) >= 45
    for other in network.counter_examples(sampler, backend, steps):
        assert apart(other, wanted) > 1e-3, "the check must be able to fail"


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        *itertools.product(NETWORKS, ["ddim"]),
        ("tiny", "euler_a"),
        *(pytest.param(name, "euler_a", marks=pytest.mark.exhaustive) for name in ("sd1", "sd2")),
    ],
)
def test_another_seed_draws_another_picture(networks: Callable[[str], Network], name: str, sampler: str) -> None:
    network = networks(name)
    wanted = network.theirs.latents(PROMPT, NEGATIVE, **asked(sampler, 7))
    assert apart(network.latents("torch", sampler, 7, SEED + 1), wanted) > 1e-3
