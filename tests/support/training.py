"""Runs of training in small: the recipe of the suite, whole or with other numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from training.batches import Captions, Context
from training.data.opened import open_pictures
from training.files import write
from training.networks import text_spec
from training.processes import Processes
from training.recipe import Recipe, read_recipe
from training.vocabulary import tokenizer_files

TINY = Path(__file__).parents[2] / "training/recipes/tiny.yaml"


def tiny(**phases: object) -> Recipe:
    """The suite's recipe; `phases` replace some of its phases' fields, in all phases that have them."""
    recipe = read_recipe(TINY)
    changed = {}
    for field in dataclasses.fields(recipe.phases):
        phase = getattr(recipe.phases, field.name)
        names = {one.name for one in dataclasses.fields(phase)}
        changed[field.name] = dataclasses.replace(phase, **{k: v for k, v in phases.items() if k in names})
    return dataclasses.replace(recipe, phases=dataclasses.replace(recipe.phases, **changed))


def context_of(folder: Path, recipe: Recipe, processes: Processes | None = None) -> Context:
    """What a phase is made of, without a run; the process that is first writes the tokenizer."""
    processes = processes or Processes()
    pictures = open_pictures(recipe)
    if processes.first:
        for name, data in tokenizer_files(pictures.texts(), recipe.data.vocabulary, recipe.text.tokens).items():
            write(folder / "tokenizer" / name, data)
    processes.wait()
    return Context(recipe, folder, pictures, Captions(folder, text_spec(recipe)), processes)
