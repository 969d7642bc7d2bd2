"""What is asked of CUDA, and in which order, on a CUDA that only takes notes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from engines.cuda.backend import CudaBackend
from engines.cuda.kernels import plain_kernels
from engines.cuda.stepper import CudaStepper
from engines.cuda.stream import Fetched, Mark, OnDevice, Stream
from engines.errors import DeviceError, OutOfMemory
from engines.model import Model
from pipeline.checkpoint.opened import Checkpoint
from tests.support.cuda_notes import Notes
from tests.support.requests import Request
from tests.support.toy import SEATS, SHAPE, STEPS, Toy, toy_sit

CPU = torch.device("cpu")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    return Notes(monkeypatch)


def test_a_capture_is_warmed_up_first(notes: Notes) -> None:
    stream = notes.stream("steps")
    replay = stream.captured(lambda: notes.said.append("run"))
    waited = "steps synchronized"
    assert notes.said == ["run", "run", waited, "run", waited, "capture", "run", "captured"]
    notes.clear()
    replay()
    assert notes.said == ["replay"]


def test_a_graph_for_which_there_is_no_room_is_not_begun(notes: Notes) -> None:
    """What a run takes is known by then; a smaller graph finds its room in what a larger one has left in the pool."""
    stream = notes.stream("steps")

    def taking(gigabytes: int) -> Callable[[], None]:
        def run() -> None:
            notes.reserved += gigabytes << 30

        return run

    stream.captured(taking(6))
    notes.room = 1 << 30, 24 << 30
    stream.captured(taking(5))
    stream.captured(taking(7))
    notes.clear()
    with pytest.raises(OutOfMemory, match="full: a graph needs 2.00 GiB more, 1.00 GiB of 24.00 GiB is free$"):
        stream.captured(taking(9))
    assert "capture" not in notes.said


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
def test_the_host_is_at_most_one_replay_ahead(notes: Notes, oracle: Model, exact: bool) -> None:
    steps, side = notes.stream("steps"), notes.stream("side")
    sizes: list[int] = []

    class Network(Toy):
        def denoise(self, samples: Any, times: Any, texts: Any) -> Any:
            sizes.append(len(texts))
            return super().denoise(samples, times, texts)

    stepper = CudaStepper(Network(), plain_kernels(), SHAPE, SEATS, STEPS, steps, side, exact=exact)
    assert sizes == sorted(sizes, reverse=True), "the largest first"
    assert len(set(map(id, notes.pools))) == 1 and len(notes.pools) == (2 * SEATS if exact else 5 + 4), "one pool"
    toy_sit(stepper, 1, oracle, Request("a", "b", 1, 8, 4.0, "euler"))
    stepper.step([1])
    notes.clear()
    for _ in range(4):
        stepper.step([1])
    begin = notes.events - 3
    expected = []
    for event in range(begin, begin + 4):
        expected += [f"host waits for {event - 2}"] if event > 2 else []
        expected += ["replay", f"event {event} on steps"]
    assert notes.said == expected, "a step is a replay and an event, and waits for the one before the last"


def test_a_preview_leaves_on_the_side(notes: Notes, oracle: Model) -> None:
    steps, side = notes.stream("steps"), notes.stream("side")
    stepper = CudaStepper(Toy(), plain_kernels(), SHAPE, SEATS, STEPS, steps, side, exact=False)
    toy_sit(stepper, 1, oracle, Request("a", "b", 1, 8, 4.0, "euler"))
    stepper.step([1])
    notes.clear()
    pending = stepper.pending_prediction(1)
    assert notes.said == ["event 2 on steps", "side waits for 2", "kept for side", "event 3 on side"]
    assert not pending.ready()
    notes.clear()
    assert np.isfinite(pending.get()).all() and notes.said == ["host waits for 3"]


def test_a_paused_picture_leaves_on_the_side_after_its_last_step(notes: Notes, oracle: Model) -> None:
    """Nobody waits for it: the next step is begun at once, and whoever sits down next is written after the copy."""
    steps, side = notes.stream("steps"), notes.stream("side")
    stepper = CudaStepper(Toy(), plain_kernels(), SHAPE, SEATS, STEPS, steps, side, exact=False)
    for seat in (1, 2):
        toy_sit(stepper, seat, oracle, Request("a", "b", 1, 8, 4.0, "dpmpp_2m"))
    stepper.step([1, 2])
    notes.clear()
    pending = stepper.pause(1)
    assert notes.said == ["event 2 on steps", "side waits for 2", "kept for side", "event 3 on side"]
    toy_sit(stepper, 1, oracle, Request("c", "d", 5, 8, 4.0, "dpmpp_2m"))
    notes.clear()
    stepper.step([2])
    assert notes.said == ["pinned", "replay", "event 4 on steps"], "the places of rows, and a step"
    notes.clear()
    assert np.isfinite(pending.get()).all() and notes.said == ["host waits for 3"]


def test_a_join_goes_through_pinned_memory_and_waits_for_nothing(notes: Notes, oracle: Model) -> None:
    steps = notes.stream("steps")
    stepper = CudaStepper(Toy(), plain_kernels(), SHAPE, SEATS, STEPS, steps, steps, exact=True)
    notes.clear()
    toy_sit(stepper, 1, oracle, Request("a", "b", 1, 8, 4.0, "euler_a"))
    assert set(notes.said) == {"pinned"}


def test_cudas_errors_are_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="cuda failed: an illegal address"), Stream(CPU).here():
        raise torch.AcceleratorError("an illegal address")

    class Lost:
        def synchronize(self) -> None:
            raise torch.AcceleratorError("the card fell off the bus")

        query = synchronize

    lost: Any = Lost()
    for call in (Mark(lost).wait, Mark(lost).done):
        with pytest.raises(DeviceError, match="fell off the bus"):
            call()
    with pytest.raises(ValueError), Stream(CPU).here():
        raise ValueError("somebody else's")


def test_what_a_failed_device_was_to_write_is_not_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freeing pinned memory after an error that CUDA keeps is a throw from a destructor: the process would end."""

    class Lost:
        def synchronize(self) -> None:
            raise torch.AcceleratorError("an illegal address")

    lost: Any = Lost()
    monkeypatch.setattr("engines.cuda.stream._lost", kept := [])
    target = torch.zeros(1)
    with pytest.raises(DeviceError):
        Fetched(Mark(lost), [target]).arrays()
    assert [tensor is target for (tensor,) in kept] == [True]


def test_a_decode_waits_for_the_step_that_made_its_latents(notes: Notes, bare: Checkpoint) -> None:
    """Beside later steps, which may give the seat on: it reads a copy, which is kept for it."""
    backend = CudaBackend(bare, "f32", pixels="fast", device="cpu", kernels=plain_kernels())
    backend._decoding = notes.stream("decodes")
    steps = notes.stream("steps")
    shape = bare.spec.latent_shape(bare.spec.defaults.width, bare.spec.defaults.height)
    latents = OnDevice(torch.zeros(shape), steps.mark(), notes.stream("side"))
    backend._decoder_of(shape)
    notes.clear()
    pending = backend.picture(latents)
    assert notes.said == ["decodes waits for 1", "kept for decodes", "replay", "event 2 on decodes"]
    assert not pending.ready()
