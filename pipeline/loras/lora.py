"""A LoRA as a row takes it: each layer's A and B, filled up with zeros to a rank that is run (layers.RANKS)."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrays import F32, Halves
from pipeline.loras.layers import Layers, inputs_of

Inputs = Mapping[str, F32]  # by a graph's input: A [1, rank, in], B [1, out, rank]
RowInputs = Mapping[str, F32] | Mapping[str, Halves]  # of a UNet: in the type that its backend takes


@dataclass(frozen=True, eq=False)
class Lora:
    """Holds what one or several LoRAs, each at its weight, add to a model's layers."""

    rank: int  # one of layers.RANKS
    unet: RowInputs
    text: Inputs | None  # None: they add nothing to the text encoder
    key: Hashable = None  # of the text encoder's part: of two that are equal so are the contexts
    nbytes: int = 0  # of its own arrays: where it adds nothing, all share the same zeros


def zeros(layers: Layers, rank: int, dtype: type[np.float32] | type[np.uint16] = np.float32) -> dict[str, Any]:
    """Return the inputs of a row without a LoRA. Nobody may write to them: they are shared."""
    inputs = {}
    for layer, (out, into) in layers.items():
        a, b = inputs_of(layer)
        inputs[a], inputs[b] = _zeros((1, rank, into), dtype), _zeros((1, out, rank), dtype)
    return inputs


@functools.lru_cache(maxsize=512)
def _zeros(shape: tuple[int, ...], dtype: type[Any]) -> NDArray[Any]:
    return np.zeros(shape, dtype)
