"""Which steps, guidance and sampler a model should be served with: the same prompts and seeds, drawn with each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data.drawn import DrawnPictures
from training.draw import Drawing
from training.evaluate import prompts as fixed
from training.evaluate.opened import OpenedModel
from training.evaluate.verdict import verdict
from training.files import write
from training.phases.classifier import Net

_FIRST_SEED = 1000  # as evaluation has it


@dataclass(frozen=True)
class Way:
    sampler: str
    steps: int
    guidance: float


@dataclass(frozen=True)
class Figure:
    """Holds what the classifier says of pictures that were drawn in one way."""

    way: Way
    top1: float
    style: float
    sure: float  # mean probability of the thing that was wanted: it tells ways apart that are right equally often
    seconds: float  # a picture, in torch

    def row(self) -> str:
        way = f"{self.way.sampler},{self.way.steps},{self.way.guidance:g}"
        return f"{way},{self.top1:.4f},{self.style:.4f},{self.sure:.4f},{self.seconds:.4f}"


def compared(
    model: OpenedModel, pictures: DrawnPictures, net: Net, ways: Sequence[Way], count: int, file: Path,
    say: Callable[[str], None],
) -> list[Figure]:  # fmt: skip
    """Draw `count` prompts of one thing in every way, and keep a row of each. Errors: TrainingError."""
    prompts = fixed.singles(pictures, count)
    texts, wanted = [prompt.text for prompt in prompts], [prompt.wanted for prompt in prompts]
    header, figures = "sampler,steps,guidance,top1,style,sure,seconds", list[Figure]()
    say(header)
    for way in ways:
        begun = time.monotonic()
        drawn = model.draw(texts, Drawing(_FIRST_SEED, way.steps, way.guidance, way.sampler))
        took = (time.monotonic() - begun) / len(texts)
        said = verdict(net, pictures.things, pictures.styles, drawn, wanted)
        figures.append(Figure(way, said.mean()["top1"], said.mean()["style"], float(said.sure.mean()), took))
        say(figures[-1].row())
        write(file, "\n".join((header, *(figure.row() for figure in figures), "")).encode())
    return figures
