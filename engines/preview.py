"""The preview: a linear map from latents to colours, fitted to the model's own autoencoder.

A latent position is nearly a colour already, so a preview is one small matrix product and costs the device nothing.
The map is fitted by least squares on synthetic pictures, which need no data set: smooth fields of colour with discs
and boxes of other colours, on grounds from white to black. That takes about a second, so it waits for the first
request that wants a preview.
"""

from __future__ import annotations

import logging
import threading

import numpy as np
from numpy.typing import NDArray

from engines.backend import Backend
from pipeline.arrays import F32

# Twelve pictures explain 73.8% of the colours' variance on the demo model, thirty-two of four times the side 74.1%.
_PICTURES, _SIDE = 12, 64

log = logging.getLogger("latentd.preview")


class Preview:
    """The map of one model. Any thread may ask for it; the first one fits it, and the others wait for that."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._matrix: F32 | None = None

    @property
    def known(self) -> F32 | None:
        """Return the map [3, C + 1], latents and 1 to red, green and blue; None before it was fitted."""
        return self._matrix

    def matrix(self) -> F32:
        """Return the map, fitted now where it is not known. Errors: those of Backend.moments."""
        with self._lock:
            if self._matrix is None:
                self._matrix, explained = fit(self._backend)
                log.info("preview: a linear map of the latents explains %.0f%% of the colours", 100 * explained)
            return self._matrix


def fit(backend: Backend) -> tuple[F32, float]:
    """Fit the map through the VAE's encoder; return it with the share of the colours' variance that it explains."""
    spec = backend.spec
    unit, vae = spec.size_multiple, spec.vae
    side = max(unit, _SIDE // unit * unit)
    rows, colours = [], []
    for seed in range(_PICTURES):
        picture = synthetic_picture(seed, side, vae.image_channels)
        mean = backend.moments(picture)[: vae.latent_channels]
        latents = (mean - vae.shift_factor) * vae.scaling_factor  # [C, h, w]
        rows.append(np.concatenate([latents, np.ones_like(latents[:1])]).reshape(len(latents) + 1, -1).T)
        h, w = latents.shape[1:]
        small = picture.reshape(len(picture), h, vae.factor, w, vae.factor).mean((2, 4))  # [3, h, w]
        colours.append((small * 0.5 + 0.5).reshape(len(small), -1).T)
    x, y = np.concatenate(rows).astype(np.float64), np.concatenate(colours).astype(np.float64)  # [n, C + 1], [n, 3]
    solution = np.linalg.lstsq(x, y, rcond=None)[0]  # [C + 1, 3]
    unexplained = np.square(y - x @ solution).sum() / np.square(y - y.mean(0)).sum()
    return solution.T.astype(np.float32), float(1 - unexplained)


def synthetic_picture(seed: int, side: int, channels: int = 3) -> F32:
    """Draw [channels, side, side] in -1..1 with smooth and sharp parts, the same for the same seed."""
    random = np.random.default_rng(seed)
    ground = random.random((channels, 1, 1)) if seed % 2 else np.full((channels, 1, 1), 1.0 - (seed % 4) / 2)
    picture = np.broadcast_to(ground, (channels, side, side)).copy()
    if seed % 3:
        picture += 0.8 * (_smooth(random.random((channels, 4, 4)), side) - picture)
    line = np.linspace(0, 1, side)
    for shape in range(6):
        cy, cx, size = random.random(3)
        y, x = line[:, None] - cy, line[None] - cx
        distance = np.hypot(y, x) if shape % 2 else np.maximum(np.abs(y), np.abs(x))
        picture = np.where(distance < 0.05 + 0.2 * size, random.random((channels, 1, 1)), picture)
    return (picture.clip(0, 1) * 2 - 1).astype(np.float32)


def _smooth(field: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Enlarge [channels, n, n] to [channels, side, side] without an edge: cosine weights between its points."""
    n = field.shape[1]
    place = np.linspace(0, n - 1, side)
    left = np.minimum(place.astype(int), n - 2)
    right = (1 - np.cos(np.pi * (place - left))) / 2  # [side], the share of the point to the right
    weights = np.zeros((side, n))
    weights[np.arange(side), left], weights[np.arange(side), left + 1] = 1 - right, right
    return np.einsum("ij,cjk,lk->cil", weights, field, weights)
