"""Noise against torch's own CPU generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.noise import standard_normal

# torch differs from itself by 2e-6 between vector instruction sets; float32 logarithms and cosines add as much.
TOLERANCE = 4e-6


def error(seed: int, shape: tuple[int, ...], draws: int = 1) -> float:
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.stack([torch.randn(shape, generator=generator) for _ in range(draws)]).numpy()
    got = standard_normal(seed, shape, draws)
    assert got.shape == wanted.shape and got.dtype == np.float32
    return float(np.abs(got - wanted).max())


@pytest.mark.parametrize("size", [*range(16, 50), 255, 1000, 4096])
def test_every_size_whole_or_ragged(size: int) -> None:
    assert error(size, (size,)) < TOLERANCE


@pytest.mark.parametrize("shape", [(4, 64, 64), (4, 96, 64), (3, 12, 12), (8, 5, 7), (1, 3, 3, 3)])
@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**32 - 1])
def test_latents(seed: int, shape: tuple[int, ...]) -> None:
    assert error(seed, shape) < TOLERANCE


@pytest.mark.parametrize("shape", [(16,), (4, 8, 8), (3, 5, 7)])
def test_draws_follow_each_other(shape: tuple[int, ...]) -> None:
    assert error(11, shape, draws=5) < TOLERANCE
    first, second = standard_normal(11, shape, 2)
    assert np.array_equal(first, standard_normal(11, shape)[0])
    assert np.abs(first - second).max() > 0.1


def test_another_seed_is_other_noise() -> None:
    assert np.abs(standard_normal(1, (64,)) - standard_normal(2, (64,))).max() > 0.1


def test_many_seeds() -> None:
    seeds = np.random.default_rng(0).integers(0, 2**32, 100)
    assert max(error(int(seed), (4, 8, 8)) for seed in seeds) < TOLERANCE


@pytest.mark.parametrize(("seed", "shape"), [(-1, (16,)), (2**32, (16,)), (0, (15,))])
def test_what_it_does_not_do_is_our_bug(seed: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        standard_normal(seed, shape)
