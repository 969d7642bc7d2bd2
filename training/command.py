"""What `python -m training` does beside running a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.batches import Captions, Context
from training.data.drawn import DrawnPictures
from training.data.opened import open_pictures
from training.data.sample import Pictures
from training.errors import TrainingError
from training.evaluate.defaults import Way, compared
from training.evaluate.opened import open_model
from training.evaluate.report import evaluate
from training.files import read_tensors
from training.loop import WEIGHTS
from training.networks import text_spec
from training.phases.classifier import Classifier, Net
from training.processes import Processes
from training.recipe import Recipe
from training.sheet import sheet, write_png

_SHOWN = 96


def judged(checkpoint: Path, recipe: Recipe, run: Path, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Judge a checkpoint by the classifier of a run, with the recipe's data. Errors: TrainingError, CheckpointError."""
    pictures = open_pictures(recipe)
    net = _classifier(recipe, run, pictures) if pictures.things else None
    figures = evaluate(checkpoint, recipe, pictures, net, out, say)
    for name, value in figures.items():
        say(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    return figures


def compared_defaults(
    checkpoint: Path, recipe: Recipe, run: Path, ways: Sequence[Way], file: Path, say: Callable[[str], None]
) -> None:
    """Say how often a checkpoint is right in each of some ways of drawing. Errors: TrainingError, CheckpointError."""
    pictures = open_pictures(recipe)
    if not isinstance(pictures, DrawnPictures):
        raise TrainingError(f"data.kind is {recipe.data.kind}; only things that have names are recognised again")
    net = _classifier(recipe, run, pictures).eval()
    compared(open_model(checkpoint), pictures, net, ways, recipe.evaluate.prompts, file, say)


def _classifier(recipe: Recipe, run: Path, pictures: Pictures) -> Net:
    """Return the classifier of a run. Errors: TrainingError."""
    context = Context(recipe, run, pictures, Captions(run, text_spec(recipe)), Processes())
    net = Classifier(context).net
    place = run / Classifier.name / WEIGHTS
    weights = read_tensors(place)[0]
    if weights.keys() != net.state_dict().keys() or not _fits(net, weights):
        raise TrainingError(f"{place} is of other things or styles than the recipe's")
    net.load_state_dict(weights, strict=True)
    return net


def _fits(net: Net, weights: dict[str, Any]) -> bool:
    return all(weights[name].shape == value.shape for name, value in net.state_dict().items())


def shown(recipe: Recipe, file: Path) -> None:
    """Write a sheet of the first pictures that the denoiser learns from, with their captions. Errors: TrainingError."""
    pictures = open_pictures(recipe)
    samples = [pictures.sample("denoiser", i) for i in range(_SHOWN)]
    captions = [sample.caption for sample in samples]
    write_png(file, sheet([sample.pixels for sample in samples], 12, captions, enlarge=max(1, 128 // recipe.data.side)))
