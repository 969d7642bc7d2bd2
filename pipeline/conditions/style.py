"""A style from a picture: tokens that every attention to the text also sees (Ye et al. 2023, IP-Adapter)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.arrays import F32

_EPS = 1e-5  # of torch's LayerNorm, which no adapter's file tells


@dataclass(frozen=True, eq=False)
class Style:
    """Holds a picture's tokens, what stands for them in the row without a prompt, and how much both weigh."""

    tokens: F32  # [tokens, width]
    empty: F32  # [tokens, width]: of an embedding of zeros, as diffusers has it
    weight: float  # of the second attention's result; 0: the row computes what it does without a style

    def __post_init__(self) -> None:
        assert self.tokens.dtype == self.empty.dtype == np.float32, (self.tokens.dtype, self.empty.dtype)
        assert self.tokens.shape == self.empty.shape, (self.tokens.shape, self.empty.shape)

    def row(self, row: int) -> F32:
        """Return the tokens of a picture's row: 0 has its prompt, 1 the negative one."""
        return (self.tokens, self.empty)[row]


@dataclass(frozen=True, eq=False)
class Projection:
    """Projects a picture's embedding to tokens: a linear layer, and a norm of each token."""

    weight: F32  # [tokens * width, D]
    bias: F32  # [tokens * width]
    norm: F32  # [width]
    norm_bias: F32  # [width]

    def __call__(self, embedding: F32) -> F32:
        """Return the tokens [tokens, width] of an embedding [D]."""
        tokens = (self.weight @ embedding + self.bias).reshape(-1, len(self.norm))
        centred = tokens - tokens.mean(axis=1, keepdims=True)
        variance = np.square(centred).mean(axis=1, keepdims=True)
        return centred / np.sqrt(variance + np.float32(_EPS)) * self.norm + self.norm_bias
