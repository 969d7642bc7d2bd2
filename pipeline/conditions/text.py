"""Prompts to what the UNet attends to: chunks encoded, weighed, laid end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F32
from pipeline.prompt import Prompt


@dataclass(frozen=True, eq=False)
class Encoded:
    """Holds what a row of the UNet is given of a text."""

    context: F32  # [tokens, width]
    pooled: F32 | None = None  # [width]: the whole text's embedding, of SDXL's second text encoder

    @property
    def beside(self) -> dict[str, F32]:
        """Return what a row is given beside the context, by the names of the UNet's inputs."""
        return {} if self.pooled is None else {"pooled": self.pooled}


Encode = Callable[[NDArray[np.int64], int], Encoded]  # of ids [tokens] or [2, tokens], and layers to leave out


def encoded_prompt(prompt: Prompt, encode: Encode) -> Encoded:
    """Return a context [chunks * tokens, width]: a weighted token moves away from what the empty prompt has there.

    This is ComfyUI's formula (comfy/sd1_clip.py, encode_token_weights): empty + weight (token - empty). The embedding
    of the whole text is the first chunk's, as there, whatever its words weigh.
    """
    chunks, pooled = [], None
    for number, ids in enumerate(prompt.ids):
        text = encode(ids, prompt.skip)
        context, pooled = text.context, text.pooled if number == 0 else pooled
        if ((weights := prompt.weighing(number)) != 1).any():
            empty = encode(prompt.empty, prompt.skip).context
            context = np.where(weights != 1, empty + weights * (context - empty), context)
        chunks.append(context)
    whole = np.concatenate(chunks)
    if prompt.zeros:
        return Encoded(np.zeros_like(whole), None if pooled is None else np.zeros_like(pooled))
    return Encoded(whole, pooled)
