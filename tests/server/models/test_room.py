"""Whether another model fits beside the one that is served, in numbers."""

from __future__ import annotations

import dataclasses

import pytest

from engines.errors import OutOfMemory
from engines.model import Model
from pipeline.checkpoint.opened import Checkpoint
from server.models.room import Room


def test_a_model_takes_what_the_first_one_took_and_its_further_weights(
    model: Model, sd1_checkpoint: Checkpoint
) -> None:
    held, free = iter((1000, 5000)), 0
    room = Room(lambda: next(held), lambda: free)
    assert room.needed(model.checkpoint) is None
    room.check(model.checkpoint)  # nothing was measured, so nothing is refused
    room.loaded(model)
    more = sd1_checkpoint.weights.total - model.checkpoint.weights.total
    assert more > 0
    assert room.needed(model.checkpoint) == round(1.1 * 4000)
    assert room.needed(sd1_checkpoint) == round(1.1 * (4000 + more))
    free = round(1.1 * (4000 + more))
    room.check(sd1_checkpoint)
    free -= 1
    with pytest.raises(OutOfMemory, match="it would take about .* beside the model that is served, and .* are free"):
        room.check(sd1_checkpoint)


def test_a_backend_of_float32_copies_takes_twice_the_weights(model: Model, sd1_checkpoint: Checkpoint) -> None:
    held = iter((0, 4000))
    room = Room(lambda: next(held), lambda: None)

    class Copies:
        name, precision = "torch", "f32"

    room.loaded(dataclasses.replace(model, backend=Copies()))  # type: ignore[arg-type]
    more = sd1_checkpoint.weights.total - model.checkpoint.weights.total
    assert room.needed(sd1_checkpoint) == round(1.1 * (4000 + 2 * more))
    room.check(sd1_checkpoint)  # where the system does not tell what is free, nothing is refused
