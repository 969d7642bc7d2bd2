"""Encoded prompts, the latest of them remembered: many requests share a prompt, nearly all the negative one."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from engines.backend import Backend
from pipeline.arrays import F32
from pipeline.conditions.text import context_of
from pipeline.prompt import Prompt

_KEPT = 128  # chunks: 30 MB at 77 tokens of width 768


class Contexts:
    """Encodes prompts, and remembers the latest. Used by the device thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: OrderedDict[tuple[bytes, int], F32] = OrderedDict()  # of chunks

    def missing(self, prompt: Prompt) -> int:
        """Count the chunks that would have to be encoded for a prompt now. Called by any thread."""
        weighted = (prompt.weights != 1).any()
        chunks = {(ids.tobytes(), prompt.skip) for ids in (*prompt.ids, *([prompt.empty] if weighted else []))}
        return sum(1 for key in chunks if key not in self._known)

    def of(self, prompt: Prompt) -> tuple[F32, int]:
        """Return a prompt's context [chunks * tokens, width], and how many chunks had to be encoded for it.

        Errors: those of Backend.encode.
        """
        encoded = 0

        def encode(ids: NDArray[np.int64], skip: int) -> F32:
            nonlocal encoded
            key = ids.tobytes(), skip
            if (known := self._known.get(key)) is not None:
                self._known.move_to_end(key)
                return known
            context = self._known[key] = self._backend.encode(ids, skip)
            encoded += 1
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
            return context

        return context_of(prompt, encode), encoded
