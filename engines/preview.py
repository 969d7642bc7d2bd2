"""The preview: a small map from latents to colours, fitted to the model's own autoencoder.

A colour is a linear function of the latents at its position and the eight around it. That costs the device nothing,
and is fitted by least squares on drawn pictures, which need no data set: what counts is that edges are smooth, that
shapes have outlines, and that grounds are often white. On the demo model the last preview of a picture is 22 dB from
the picture, shrunk to latents; a map of the position alone, fitted to hard-edged shapes, had 16 (docs/design.md).

What is previewed is the predicted picture, x0. Early in a guided run it overshoots: its latents are up to twice as
strong as any picture's, and the decoder, which normalises, hardly shows that. So they are weakened to what the drawn
pictures have.

Fitting takes a tenth of a second on the demo model, so it waits for the first request that wants a preview.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.backend import Backend
from pipeline.arrays import F32

_PICTURES, _SIDE = 12, 64
_AROUND = 3  # latent positions a side; five are no better (22.0 dB and 22.2)
# Of the squared deviation of each number that the map reads: least squares alone trusts neighbours that are alike.
_RIDGE = 1e-4

log = logging.getLogger("latentd.preview")


@dataclass(frozen=True)
class ColourMap:
    """Maps latents to colours. `explained`: the share of the colours' variance in the drawn pictures."""

    weights: F32  # [3, 9 C + 1]
    spread: float  # the standard deviation of the drawn pictures' latents
    explained: float = 0.0

    def colours(self, latents: F32) -> F32:
        """Return the colours [3, h, w], in about 0..1, of latents [C, h, w]; NaN where a latent near is none."""
        with np.errstate(invalid="ignore", over="ignore"):  # of latents that are no numbers
            strength = float(np.std(latents))
            weakened = latents * np.float32(self.spread / strength) if strength > self.spread else latents
            return np.tensordot(self.weights[:, :-1], _around(weakened), axes=1) + self.weights[:, -1:, None]


class Preview:
    """The map of one model. Any thread may ask for it; the first one fits it, and the others wait for that."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._map: ColourMap | None = None

    @property
    def known(self) -> ColourMap | None:
        """Return the map; None before it was fitted."""
        return self._map

    def map(self) -> ColourMap:
        """Return the map, fitted now where it is not known. Errors: those of Backend.moments."""
        with self._lock:
            if self._map is None:
                self._map = fit(self._backend)
                log.info("preview: a map of the latents explains %.0f%% of the colours", 100 * self._map.explained)
            return self._map


def fit(backend: Backend) -> ColourMap:
    """Fit the map through the VAE's encoder, which any thread may call."""
    spec = backend.spec
    unit, vae = spec.size_multiple, spec.vae
    side = max(unit, _SIDE // unit * unit)
    rows, colours, strengths = [], [], []
    for seed in range(_PICTURES):
        picture = synthetic_picture(seed, side, vae.image_channels)
        mean = backend.moments(picture)[: vae.latent_channels]
        latents = (mean - vae.shift_factor) * vae.scaling_factor  # [C, h, w]
        around = _around(latents)
        rows.append(np.concatenate([around, np.ones_like(around[:1])]).reshape(len(around) + 1, -1).T)
        h, w = latents.shape[1:]
        small = picture.reshape(len(picture), h, vae.factor, w, vae.factor).mean((2, 4))  # [3, h, w]
        colours.append((small * 0.5 + 0.5).reshape(len(small), -1).T)
        strengths.append(np.square(latents.std()))
    x, y = np.concatenate(rows).astype(np.float64), np.concatenate(colours).astype(np.float64)  # [n, 9 C + 1], [n, 3]
    held = np.diag(_RIDGE * len(x) * x.var(0))  # not the constant, which does not vary
    solution = np.linalg.lstsq(x.T @ x + held, x.T @ y, rcond=None)[0]  # [9 C + 1, 3]
    unexplained = np.square(y - x @ solution).sum() / np.square(y - y.mean(0)).sum()
    return ColourMap(solution.T.astype(np.float32), float(np.sqrt(np.mean(strengths))), float(1 - unexplained))


def _around(latents: F32) -> F32:
    """Return [9 C, h, w]: at each position the latents there and around it; the edge goes on outside."""
    margin, (h, w) = _AROUND // 2, latents.shape[1:]
    padded = np.pad(latents, ((0, 0), (margin, margin), (margin, margin)), mode="edge")
    return np.concatenate([padded[:, y : y + h, x : x + w] for y in range(_AROUND) for x in range(_AROUND)])


def synthetic_picture(seed: int, side: int, channels: int = 3) -> F32:
    """Draw [channels, side, side] in -1..1, the same for the same seed: ellipses and strokes, some with outlines.

    Every third picture has a coloured ground, every fourth a smooth field of colour; the others are on white.
    """
    random = np.random.default_rng(seed)
    picture = np.ones((channels, side, side))
    if seed % 3 == 0:
        picture *= random.random((channels, 1, 1))
    if seed % 4 == 2:
        picture = _smooth(random.random((channels, 4, 4)), side)
    line = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(line, line, indexing="ij")
    for _ in range(5):
        cy, cx, size, ratio = random.random(4)
        far = np.hypot(x - cx, (y - cy) / (0.2 + 0.8 * ratio)) - (0.08 + 0.25 * size)  # from its edge, in sides
        if random.random() < 0.7:
            picture = _painted(picture, -far * side, random.random((channels, 1, 1)))
        if random.random() < 0.7:
            width = 0.5 + 1.5 * random.random()  # pixels, to either side
            picture = _painted(picture, width - np.abs(far) * side, np.zeros((channels, 1, 1)))
    for stroke in range(5):
        (ay, ax), (by, bx) = random.random((2, 2))
        length = max((by - ay) ** 2 + (bx - ax) ** 2, 1e-6)
        along = np.clip(((y - ay) * (by - ay) + (x - ax) * (bx - ax)) / length, 0, 1)
        far = np.hypot(y - ay - along * (by - ay), x - ax - along * (bx - ax))
        colour = random.random((channels, 1, 1)) if stroke % 2 else np.zeros((channels, 1, 1))
        picture = _painted(picture, 0.5 + 1.5 * random.random() - far * side, colour)
    return (picture.clip(0, 1) * 2 - 1).astype(np.float32)


def _painted(picture: NDArray[Any], inside: NDArray[Any], colour: NDArray[Any]) -> NDArray[Any]:
    """Paint where `inside`, the pixels from an edge, is positive; what the edge crosses is mixed."""
    return picture + (colour - picture) * np.clip(inside + 0.5, 0, 1)


def _smooth(field: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Enlarge [channels, n, n] to [channels, side, side] without an edge: cosine weights between its points."""
    n = field.shape[1]
    place = np.linspace(0, n - 1, side)
    left = np.minimum(place.astype(int), n - 2)
    right = (1 - np.cos(np.pi * (place - left))) / 2  # [side], the share of the point to the right
    weights = np.zeros((side, n))
    weights[np.arange(side), left], weights[np.arange(side), left + 1] = 1 - right, right
    return np.einsum("ij,cjk,lk->cil", weights, field, weights)
