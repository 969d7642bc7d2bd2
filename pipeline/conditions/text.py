"""Prompts to what the UNet attends to: chunks encoded, weighed, laid end to end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F32
from pipeline.prompt import Prompt

Encode = Callable[[NDArray[np.int64], int], F32]  # ids [tokens] and layers left out, to [tokens, width]


def context_of(prompt: Prompt, encode: Encode) -> F32:
    """Return [chunks * tokens, width]: a weighted token moves away from what the empty prompt has at its place.

    This is ComfyUI's formula (comfy/sd1_clip.py, encode_token_weights): empty + weight (token - empty).
    """
    chunks = []
    for ids, weights in zip(prompt.ids, prompt.weights, strict=True):
        context = encode(ids, prompt.skip)
        if (weights != 1).any():
            empty = encode(prompt.empty, prompt.skip)
            weighed = empty + weights[:, None] * (context - empty)
            context = np.where((weights != 1)[:, None], weighed, context)
        chunks.append(context)
    return np.concatenate(chunks)
