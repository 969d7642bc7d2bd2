"""Encoded prompts, the latest of them remembered: many requests share a prompt, nearly all the negative one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
from numpy.typing import NDArray

from engines.backend import Backend
from pipeline.conditions.text import Encoded, encoded_prompt
from pipeline.loras.lora import Lora
from pipeline.prompt import Prompt

_KEPT = 128  # chunks: 30 MB at 77 tokens of width 768, 81 of SDXL's 2,048


class Contexts:
    """Encodes prompts, and remembers the latest. Used by the device thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: OrderedDict[tuple[bytes, int, Hashable], Encoded] = OrderedDict()  # of chunks

    def missing(self, prompt: Prompt, lora: Hashable = None) -> int:
        """Count the chunks that would have to be encoded for a prompt now. Called by any thread.

        `lora`: Lora.key of what is added to the text encoder; None: nothing.
        """
        weighted, lora = (prompt.weights != 1).any(), None if prompt.zeros else lora
        chunks = {(ids.tobytes(), prompt.skip, lora) for ids in (*prompt.ids, *([prompt.empty] if weighted else []))}
        return sum(1 for key in chunks if key not in self._known)

    def of(self, prompt: Prompt, lora: Lora | None = None) -> tuple[Encoded, int]:
        """Return a prompt, encoded, and how many chunks had to be encoded for it.

        `lora`: what its request adds to the networks.
        Errors: those of Backend.encode.
        """
        # What becomes zeros is encoded for its shape alone.
        encoded, adds = 0, None if lora is None or lora.text is None or prompt.zeros else lora

        def encode(ids: NDArray[np.int64], skip: int) -> Encoded:
            nonlocal encoded
            key = ids.tobytes(), skip, None if adds is None else adds.key
            if (known := self._known.get(key)) is not None:
                self._known.move_to_end(key)
                return known
            text = self._known[key] = self._backend.encode_text(ids, skip, adds)
            encoded += 1
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
            return text

        return encoded_prompt(prompt, encode), encoded
