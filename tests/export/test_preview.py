"""The preview's linear map: exact where latents are linear in the colours, and a share that means what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from export.preview import fit_preview, synthetic_picture

from engines.artifact import Artifact
from pipeline.spec import Spec


class Encoder:
    """Stands for the exported encoder: colours averaged over a latent position, mixed, and some noise, as moments."""

    def __init__(self, spec: Spec, noise: float) -> None:
        chance = np.random.default_rng(0)
        self._vae = spec.vae
        self._factor, self._noise, self._chance = spec.vae.factor, noise, chance
        self._mix = chance.standard_normal((spec.vae.latent_channels, 3)).astype(np.float32)

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[Any]:
        small = F.avg_pool2d(torch.from_numpy(inputs["picture"]), self._factor).numpy()
        latents = np.einsum("cd,ndhw->nchw", self._mix, small) + 0.7
        latents = latents + self._noise * self._chance.standard_normal(latents.shape, dtype=np.float32)
        mean = latents / np.float32(self._vae.scaling_factor) + np.float32(self._vae.shift_factor)
        return [np.concatenate([mean, np.full_like(mean, 9)], axis=1)]

    def colours(self, latents: np.ndarray) -> np.ndarray:
        """Colours in 0..1 of latents [C, n]."""
        return np.linalg.lstsq(self._mix, latents - 0.7, rcond=None)[0] * 0.5 + 0.5


def test_a_linear_encoder_is_inverted(artifact: Artifact) -> None:
    encoder = Encoder(artifact.spec, noise=0)
    fitted = fit_preview(artifact.spec, encoder)  # type: ignore[arg-type]
    assert fitted.explained > 0.9999
    latents = np.random.default_rng(1).standard_normal((artifact.spec.vae.latent_channels, 50))
    got = np.array(fitted.matrix) @ np.concatenate([latents, np.ones((1, 50))])
    np.testing.assert_allclose(got, encoder.colours(latents), atol=1e-4)


def test_what_noise_hides_is_not_explained(artifact: Artifact) -> None:
    little, much = (fit_preview(artifact.spec, Encoder(artifact.spec, noise)) for noise in (0.2, 5))  # type: ignore[arg-type]
    assert 1 > little.explained > 0.7 > 0.3 > much.explained > 0


@pytest.mark.parametrize("seed", range(6))
def test_synthetic_pictures(seed: int) -> None:
    picture = synthetic_picture(seed, 32)
    assert picture.shape == (3, 32, 32) and picture.abs().max() <= 1
    assert picture.std() > 0.1, "it has things on it"
    assert torch.equal(picture, synthetic_picture(seed, 32))
    assert not torch.equal(picture, synthetic_picture(seed + 1, 32))


def test_grounds_from_white_to_black() -> None:
    corners = torch.stack([synthetic_picture(seed, 32)[:, 0, 0] for seed in range(32)])
    assert (corners > 0.99).all(dim=1).any() and (corners < -0.99).all(dim=1).any()
