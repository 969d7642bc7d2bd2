"""Networks with next to nothing to compute, of a real model's shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engines.cpu.host import HostBackend
from engines.model import Model
from pipeline.arrays import F32
from pipeline.conditions.style import Style
from pipeline.conditions.text import Encoded
from pipeline.loras.lora import Lora


class Tiny(HostBackend):
    """Stands where a model's networks would be, with next to nothing to compute; its pictures do not compress."""

    name, precision, makes_beside = "tiny", "f32", False

    def __init__(self, model: Model) -> None:
        self.spec = model.spec
        self._encoder = model.backend
        self._grain: F32 | None = None

    def encode_text(self, ids: NDArray[np.int64], skip: int = 0, lora: Lora | None = None) -> Encoded:
        return self._encoder.encode_text(ids, skip)

    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1, rank: int = 0) -> TinyUnet:
        text = self.spec.text
        return TinyUnet(rows, self.spec.latent_shape(width, height), (chunks * text.tokens, text.width))

    def decode(self, latents: F32) -> F32:
        factor = self.spec.vae.factor
        picture = latents[:3].repeat(factor, axis=1).repeat(factor, axis=2)
        if self._grain is None:
            self._grain = np.random.default_rng(0).random(picture.shape, np.float32) - np.float32(0.5)
        return np.clip(picture + self._grain, -1, 1)

    def moments(self, picture: F32) -> F32:
        raise NotImplementedError


class TinyUnet:
    def __init__(self, rows: int, shape: Sequence[int], context: Sequence[int]) -> None:
        self.samples, self.outputs = np.zeros((rows, *shape), np.float32), np.zeros((rows, *shape), np.float32)
        self.timesteps, self.guidance = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
        self.contexts = np.zeros((rows, *context), np.float32)

    def put(self, row: int, inputs: Mapping[str, F32]) -> None:
        assert not inputs, "the model has no such inputs"

    def put_style(self, row: int, style: Style | None, which: int) -> None:
        assert style is None, "the model has no style adapter"

    def put_lora(self, row: int, lora: Lora | None) -> None:
        assert lora is None, "the model takes no LoRAs"

    def run(self, rows: Sequence[int]) -> None:
        for row in rows:
            self.outputs[row] = self.samples[row] + np.float32(0.1)
