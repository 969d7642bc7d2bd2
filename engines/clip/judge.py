"""CLIP as the judge: how near pictures are to texts, by a model that saw pictures with what was written beside them.

It is never the served text encoder, which training moves away from the space that the two towers share.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.clip.sight import seen
from engines.clip.tower import tower_of
from pipeline.arrays import F32, Pixels
from pipeline.checkpoint.clip import Clip, TokenizerFolder
from pipeline.tokenizer import ClipTokenizer


class Judge:
    """Scores pictures against texts. Any thread may call it; each tower computes one thing at a time."""

    def __init__(self, clip: Clip, backend: str, threads: int | None = None) -> None:
        """Load both towers. Errors: those of tower_of; CheckpointError also for the tokenizer's files."""
        text, width = clip.spec.text, clip.spec.vision.projection
        assert text is not None
        self.path = clip.path
        head = {"text_projection.weight": (width, text.width), "logit_scale": ()}
        clip.weights.check("head", head)
        self._projection, scale = (clip.weights.float32("head", name, shape) for name, shape in head.items())
        self._scale = float(np.exp(scale))
        self._tokenizer = ClipTokenizer(TokenizerFolder(clip.path), text)
        self._clip = clip
        self._text = tower_of(clip, "text_encoder", backend, threads)
        self.vision = tower_of(clip, "vision_tower", backend, threads)
        self.digest = clip.weights.digest()  # which finds what is not finite

    def cut(self, text: str) -> bool:
        """Return whether a text has more tokens than the judge reads; what is beyond has no say."""
        return self._tokenizer.encode(text).cut

    def text(self, text: str) -> F32:
        """Return a text's embedding [D], of length one: that of the mark at its end, which has seen all of it."""
        ids = self._tokenizer.encode(text).ids
        end = int(ids.argmax() if self._clip.end is None else (ids == self._clip.end).argmax())
        return _unit(self._projection @ self._text(ids)[end])

    def picture(self, picture: Pixels) -> F32:
        """Return the embedding [D] of a picture [H, W, 3], of length one."""
        return _unit(self.vision(seen(picture, self._clip.spec.vision.side, self._clip.sight)))

    def scores(self, pictures: Sequence[F32], texts: Sequence[F32]) -> F32:
        """Return the scores [pictures, texts] of embeddings: their cosines times the model's own scale.

        They are CLIPModel's logits_per_image: a softmax over texts gives CLIP's probabilities.
        """
        return np.float32(self._scale) * (np.stack(pictures) @ np.stack(texts).T)


def _unit(embedding: F32) -> F32:
    return embedding / np.float32(np.linalg.norm(embedding))
