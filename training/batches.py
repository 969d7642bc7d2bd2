"""Batches: pictures as numbers in -1..1, captions as tokens, and the share of them that a process computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.networks import TextSpec
from pipeline.source import Folder
from pipeline.tokenizer import ClipTokenizer
from training.data.sample import Pictures, Sample
from training.ops import multiplies_bfloat16
from training.processes import Processes
from training.recipe import Recipe


@dataclass(frozen=True)
class Context:
    """Holds what every phase of a run shares."""

    recipe: Recipe
    folder: Path  # of the run
    pictures: Pictures
    captions: Captions
    processes: Processes
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def samples(self, purpose: str, step: int, batch: int) -> list[Sample]:
        """Return this process's share of the pictures of a step."""
        return [self.pictures.sample(purpose, step * batch + i) for i in self.processes.share(batch)]

    def share(self, whole: Tensor) -> Tensor:
        """Return this process's rows of what was drawn for a whole batch, on the device."""
        rows = self.processes.share(len(whole))
        return whole[rows.start : rows.stop].to(self.device)

    def autocast(self, wanted: bool) -> torch.autocast:
        """Compute in bfloat16 in what follows, if a recipe wants it and the device multiplies it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted and multiplies_bfloat16(self.device))


class Captions:
    """Turns captions to tokens; a caption is tokenised once."""

    def __init__(self, run: Path, spec: TextSpec) -> None:
        """Read the tokenizer of a run. Errors: CheckpointError."""
        self._encode = ClipTokenizer(Folder(run), spec).encode
        self._kept: dict[str, np.ndarray] = {}
        self.end = spec.vocab_size - 1

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Return [n, tokens]."""
        for caption in captions:
            if caption not in self._kept:
                if len(self._kept) > 200_000:
                    self._kept.clear()
                self._kept[caption] = self._encode(caption).ids
        return torch.from_numpy(np.stack([self._kept[caption] for caption in captions]))

    def ends(self, ids: Tensor) -> Tensor:
        """Return where each text's end mark stands, [n]."""
        return (ids == self.end).int().argmax(dim=1)


def pixels_of(samples: Sequence[Sample]) -> Tensor:
    """Return pictures [n, 3, side, side] in -1..1."""
    stacked = np.stack([sample.pixels for sample in samples]).transpose(0, 3, 1, 2)
    return torch.from_numpy(stacked.astype(np.float32)) / 127.5 - 1


def in_batches(count: int, size: int, make: Callable[[range], Tensor]) -> Tensor:
    """Return what `make` gives for `count` rows, at most `size` of them at once."""
    return torch.cat([make(range(begin, min(count, begin + size))) for begin in range(0, count, size)])
