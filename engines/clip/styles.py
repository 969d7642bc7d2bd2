"""Styles of pictures, for a model with a style adapter: encoder, projection, and the row without a picture."""

from __future__ import annotations

import numpy as np

from engines.clip.judge import Judge
from engines.clip.sight import seen
from engines.clip.tower import tower_of
from pipeline.arrays import Pixels
from pipeline.checkpoint.adapter import projection_of
from pipeline.checkpoint.clip import Clip
from pipeline.checkpoint.opened import Checkpoint
from pipeline.conditions.style import Style
from pipeline.errors import CheckpointError


class Styles:
    """Makes a Style of a picture. Any thread may call it; one picture at a time is encoded."""

    def __init__(
        self, checkpoint: Checkpoint, encoder: Clip, backend: str, threads: int | None, judge: Judge | None
    ) -> None:
        """Load the encoder, unless it is the judge. Errors: those of tower_of; CheckpointError where it is another
        adapter's encoder.
        """
        self._projection = projection_of(checkpoint)
        embedding, width = self._projection.weight.shape[1], encoder.spec.vision.projection
        if embedding != width:
            raise CheckpointError(
                f"{checkpoint.adapter} takes embeddings of {embedding} numbers, and {encoder.path} gives {width}: name "
                f"the encoder that was published with it, with --style-encoder"
            )
        self._encoder = encoder
        if judge is not None and judge.path == encoder.path:
            self._vision = judge.vision  # it would take a tenth of the demo model's load again
        else:
            self._vision = tower_of(encoder, "vision_tower", backend, threads)
            encoder.weights.digest()  # which finds what is not finite
        self._empty = self._projection(np.zeros(embedding, np.float32))

    def of(self, picture: Pixels, weight: float) -> Style:
        """Return the style of a picture [H, W, 3] as it weighs in a picture's rows."""
        embedding = self._vision(seen(picture, self._encoder.spec.vision.side, self._encoder.sight))
        return Style(self._projection(embedding), self._empty, weight)
