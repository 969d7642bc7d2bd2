"""The preview's map: exact where latents are linear in the colours, fitted once, through the model's own VAE."""

from __future__ import annotations

import dataclasses
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from engines.model import Model
from engines.preview import ColourMap, Preview, fit, synthetic_picture
from model.weights import load_vae_encoder
from pipeline.checkpoint.opened import Checkpoint
from pipeline.spec import Spec


class Encoder:
    """Stands for a backend: colours averaged over a latent position, mixed, and some noise, as moments."""

    def __init__(self, spec: Spec, noise: float = 0.0) -> None:
        chance = np.random.default_rng(0)
        self.spec = spec
        self._noise, self._chance = noise, chance
        self._mix = chance.standard_normal((spec.vae.latent_channels, 3)).astype(np.float32)
        self.pictures: list[Any] = []

    def moments(self, picture: np.ndarray) -> np.ndarray:
        self.pictures.append(picture)
        vae, (c, h, w) = self.spec.vae, picture.shape
        small = picture.reshape(c, h // vae.factor, vae.factor, w // vae.factor, vae.factor).mean((2, 4))
        latents = np.einsum("cd,dhw->chw", self._mix, small) + 0.7
        latents = latents + self._noise * self._chance.standard_normal(latents.shape, dtype=np.float32)
        mean = latents / np.float32(vae.scaling_factor) + np.float32(vae.shift_factor)
        return np.concatenate([mean, np.full_like(mean, 9)])

    def colours(self, latents: np.ndarray) -> np.ndarray:
        """Colours in 0..1 of latents [C, n]."""
        return np.linalg.lstsq(self._mix, latents - 0.7, rcond=None)[0] * 0.5 + 0.5


@pytest.fixture
def spec(checkpoint: Checkpoint) -> Spec:
    return dataclasses.replace(
        checkpoint.spec, vae=dataclasses.replace(checkpoint.spec.vae, shift_factor=0.2, scaling_factor=0.31)
    )


def test_a_linear_encoder_is_inverted(spec: Spec) -> None:
    encoder = Encoder(spec)
    map = fit(encoder)  # type: ignore[arg-type]
    assert map.explained > 0.999 and map.weights.dtype == np.float32
    colours = np.random.default_rng(1).random((3, 5, 7)) * 2 - 1
    latents = (np.einsum("cd,dhw->chw", encoder._mix, colours) + 0.7).astype(np.float32)
    got = ColourMap(map.weights, np.inf).colours(latents)
    np.testing.assert_allclose(got, colours * 0.5 + 0.5, atol=0.03)


def test_what_overshoots_is_weakened(spec: Spec) -> None:
    map = fit(Encoder(spec))  # type: ignore[arg-type]
    chance = np.random.default_rng(2)
    latents = chance.standard_normal((spec.vae.latent_channels, 6, 6), dtype=np.float32)
    latents *= np.float32(map.spread / latents.std())
    np.testing.assert_allclose(map.colours(2.5 * latents), map.colours(latents), atol=1e-4)
    weak = map.colours(0.5 * latents)
    assert abs(weak - map.colours(latents)).max() > 0.01, "what is weaker than a picture stays as it is"


def test_a_neighbour_counts(spec: Spec) -> None:
    """An encoder that moves everything one position to the right is seen through."""

    class Moved(Encoder):
        def moments(self, picture: np.ndarray) -> np.ndarray:
            moments = super().moments(picture)
            return np.concatenate([moments[:, :, :1], moments[:, :, :-1]], axis=2)

    assert fit(Moved(spec)).explained > 0.95  # type: ignore[arg-type]


def test_what_noise_hides_is_not_explained(spec: Spec) -> None:
    little, much = (fit(Encoder(spec, noise)).explained for noise in (0.2, 5))  # type: ignore[arg-type]
    assert 1 > little > 0.7 > 0.3 > much > 0


def test_of_a_model(model: Model, checkpoint: Checkpoint) -> None:
    """A random encoder knows dark from bright too: the constant is not all of the map. torch's encoder agrees."""
    map = fit(model.backend)
    assert map.weights.shape == (3, 9 * checkpoint.spec.vae.latent_channels + 1)
    assert 0 < map.explained < 1 and abs(map.weights[:, :-1]).max() > 1e-4
    import torch

    encode = load_vae_encoder(checkpoint.spec, checkpoint.weights)
    picture = synthetic_picture(0, 64)
    with torch.inference_mode():
        latents = encode(torch.from_numpy(picture[None]))[0].numpy()
    mean = model.backend.moments(picture)[: len(latents)]
    vae = checkpoint.spec.vae
    np.testing.assert_allclose((mean - vae.shift_factor) * vae.scaling_factor, latents, atol=1e-4)


def test_it_is_fitted_once_whoever_asks(spec: Spec, caplog: pytest.LogCaptureFixture) -> None:
    inside, go_on = threading.Event(), threading.Event()

    class Held(Encoder):
        def moments(self, picture: np.ndarray) -> np.ndarray:
            inside.set()
            assert go_on.wait(30)
            return super().moments(picture)

    preview = Preview(backend := Held(spec))  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, "latentd.preview"), ThreadPoolExecutor(2) as pool:
        first = pool.submit(preview.map)
        assert inside.wait(30) and preview.known is None
        second = pool.submit(preview.map)
        go_on.set()
        assert first.result() is second.result() is preview.map() is preview.known
    assert len(caplog.messages) == 1 and "explains 100% of the colours" in caplog.messages[0]
    assert len(backend.pictures) == 12 and {picture.shape for picture in backend.pictures} == {(3, 64, 64)}


def test_a_fit_that_fails_is_tried_again(spec: Spec) -> None:
    class Broken(Encoder):
        def moments(self, picture: np.ndarray) -> np.ndarray:
            if not self.pictures:
                self.pictures.append(picture)
                raise MemoryError
            return super().moments(picture)

    preview = Preview(Broken(spec))  # type: ignore[arg-type]
    with pytest.raises(MemoryError):
        preview.map()
    assert preview.known is None and preview.map().weights.shape == (3, 9 * spec.vae.latent_channels + 1)


@pytest.mark.parametrize("seed", range(6))
def test_synthetic_pictures(seed: int) -> None:
    picture = synthetic_picture(seed, 32)
    assert picture.shape == (3, 32, 32) and picture.dtype == np.float32 and abs(picture).max() <= 1
    assert picture.std() > 0.1, "it has things on it"
    assert np.array_equal(picture, synthetic_picture(seed, 32))
    assert not np.array_equal(picture, synthetic_picture(seed + 1, 32))


def test_many_grounds_are_white_and_some_are_coloured() -> None:
    corners = np.stack([synthetic_picture(seed, 32)[:, 0, 0] for seed in range(32)])
    white = (corners > 0.99).all(axis=1)
    assert 8 <= white.sum() <= 20 and corners[~white].std() > 0.3
