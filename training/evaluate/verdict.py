"""What the classifier says of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.data.scene import GROUNDS
from training.phases.classifier import Net

_AT_ONCE = 128
_RIM = 2  # pixels along the edge that tell the ground


@dataclass(frozen=True)
class Wanted:
    things: tuple[str, ...]
    style: str
    ground: str = "white"


@dataclass(frozen=True)
class Verdict:
    """Says of each picture whether it is what was wanted, [n] each."""

    top1: Tensor  # is the first thing wanted? Of two things: are they the first two?
    top5: Tensor
    style: Tensor
    ground: Tensor
    sure: Tensor  # the probability of what was wanted, not 0 or 1

    def mean(self) -> dict[str, float]:
        return {name: float(getattr(self, name).float().mean()) for name in ("top1", "top5", "style", "ground")}


@torch.no_grad()
def verdict(
    net: Net, things: Sequence[str], styles: Sequence[str], pictures: Tensor, wanted: Sequence[Wanted]
) -> Verdict:
    """Classify pictures [n, 3, side, side]."""
    pictures = pictures.clamp(-1, 1)
    parts = [net(pictures[i : i + _AT_ONCE]) for i in range(0, len(pictures), _AT_ONCE)]
    logits = torch.cat([part[0] for part in parts])
    ranked = logits.argsort(dim=1, descending=True)
    drawn_styles = torch.cat([part[1] for part in parts]).argmax(dim=1)
    numbers = {thing: i for i, thing in enumerate(things)}
    firsts, fives = [], []
    for row, each in zip(ranked.tolist(), wanted, strict=True):
        sought = {numbers[thing] for thing in each.things}
        firsts.append(sought == set(row[: len(sought)]))
        fives.append(sought <= set(row[: 4 + len(sought)]))
    grounds = [ground_of(picture) == each.ground for picture, each in zip(pictures, wanted, strict=True)]
    named = [styles[number] == each.style for number, each in zip(drawn_styles.tolist(), wanted, strict=True)]
    sought = torch.zeros_like(logits)
    for row, each in enumerate(wanted):
        sought[row, [numbers[thing] for thing in each.things]] = 1
    sure = (logits.softmax(dim=1) * sought).sum(dim=1)
    top1, top5, style, ground = (torch.tensor(each) for each in (firsts, fives, named, grounds))
    return Verdict(top1, top5, style, ground, sure)


def ground_of(picture: Tensor) -> str:
    """Return the ground whose colour is nearest to the median of a picture's rim."""
    whole = (picture.clamp(-1, 1) + 1) * 127.5
    inner = torch.ones(whole.shape[1:], dtype=torch.bool)
    inner[_RIM:-_RIM, _RIM:-_RIM] = False
    middle = whole[:, inner].median(dim=1).values.numpy()
    return min(GROUNDS, key=lambda name: float(np.abs(middle - np.array(GROUNDS[name])).sum()))


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each of [n] pairs of pictures in -1..1, in dB."""
    error = (first.clamp(-1, 1) - second.clamp(-1, 1)).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error.clamp(min=1e-10) / 4)
