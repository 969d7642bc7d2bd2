"""A device whose work is under way when a call returns: the loop goes on, and fetches what is ready."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engines.backend import Pending
from engines.cuda.backend import CudaBackend
from engines.cuda.kernels import plain_kernels
from engines.errors import DeviceError
from engines.model import Model
from engines.seat import Sitting
from pipeline.arrays import F32, Pixels
from pipeline.checkpoint.opened import Checkpoint
from pipeline.tokenizer import ClipTokenizer
from server.events import Done, Preview
from tests.support.held import Held, eventually, wrapped
from tests.support.jobs import alone, box_of, running
from tests.support.patience import PATIENCE

APPLE = {"prompt": "a red apple", "steps": 3, "seed": 7, "guidance": 3.0}
CAT = {"prompt": "a cat", "steps": 2, "seed": 8, "guidance": 1.0}


class Later:
    """A picture that is ready when a test says so."""

    def __init__(self, pixels: Pixels | None) -> None:
        self.pixels, self.done, self.error = pixels, threading.Event(), None

    def ready(self) -> bool:
        return self.done.is_set()

    def get(self) -> Pixels | None:
        assert self.done.is_set(), "the loop would have waited"
        if self.error:
            raise self.error
        return self.pixels


class Decoding(Held):
    """Decodes beside the steps."""

    def __init__(self, backend: Any) -> None:
        super().__init__(backend)
        self.under_way: list[Later] = []

    def picture(self, latents: Pending[F32]) -> Pending[Pixels | None]:
        if self.decoded == 0:  # of the warm-up
            return super().picture(latents)
        self.under_way.append(Later(super().picture(latents).get()))
        return self.under_way[-1]


@pytest.fixture
def decoding(model: Model) -> Decoding:
    return Decoding(model.backend)


def test_steps_go_on_while_pictures_are_decoded(model: Model, decoding: Decoding) -> None:
    with running(wrapped(model, decoding), seats=1) as at_work:
        jobs = [at_work.submit(**asked) for asked in (APPLE, CAT, APPLE, CAT)]
        eventually(lambda: len(decoding.under_way), 2)
        steps = 3 + 2 + 3  # the fourth sits down when the third waits for the decoder no more
        eventually(lambda: len(decoding.runs) - 2, steps)  # two warm ones
        assert len(decoding.under_way) == 2, "no more than two at once: a third may still be cancelled"
        jobs[2].cancel()
        for later in decoding.under_way[:2]:
            later.done.set()
        eventually(lambda: len(decoding.under_way), 3)
        decoding.under_way[2].done.set()
        for job, asked in ((jobs[0], APPLE), (jobs[1], CAT), (jobs[3], CAT)):
            assert isinstance(box_of(job).end(), Done)
            np.testing.assert_array_equal(box_of(job).images[0], alone(model, **asked))
        assert box_of(jobs[2]).error()[0] == "CANCELLED"
        eventually(lambda: at_work.leftovers, [])


def test_a_picture_that_may_not_be_decoded_yet_keeps_nobody_awake(
    model: Model, decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop looks for what is ready now and then; without a wait between looks it would take a whole core."""
    waits = threading.Semaphore(0)
    with running(wrapped(model, decoding), seats=3) as at_work:
        changed, wait = at_work.device._changed, at_work.device._changed.wait
        jobs = [at_work.submit(**{**APPLE, "seed": seed}) for seed in range(3)]
        eventually(lambda: (len(decoding.under_way), len(at_work.device._decoding.pictures)), (2, 3))
        monkeypatch.setattr(changed, "wait", lambda seconds: (waits.release(), wait(seconds)))
        assert waits.acquire(timeout=PATIENCE), "the loop does not sleep"
        for count in (2, 3):
            eventually(lambda count=count: len(decoding.under_way), count)
            decoding.under_way[count - 2].done.set()
        decoding.under_way[2].done.set()
        for job in jobs:
            assert isinstance(box_of(job).end(), Done)


def test_a_device_that_fails_while_it_decodes(model: Model, decoding: Decoding) -> None:
    with running(wrapped(model, decoding), seats=1) as at_work:
        job = at_work.submit(**APPLE)
        eventually(lambda: len(decoding.under_way), 1)
        decoding.under_way[0].error = DeviceError("the card fell off the bus")
        decoding.under_way[0].done.set()
        assert box_of(job).error() == ("UNAVAILABLE", "the device failed: the card fell off the bus")
    assert at_work.deaths == 1


def test_stopping_does_not_wait_for_a_picture(model: Model, decoding: Decoding) -> None:
    with running(wrapped(model, decoding), seats=1) as at_work:
        job = at_work.submit(**APPLE)
        eventually(lambda: len(decoding.under_way), 1)
    assert box_of(job).error()[0] == "UNAVAILABLE"


@pytest.fixture(scope="module")
def cuda(checkpoint: Checkpoint) -> Model:
    """The CUDA backend over CPU tensors, with exact pixels."""
    backend = CudaBackend(checkpoint, "f32", pixels="exact", device="cpu", kernels=plain_kernels())
    return Model(checkpoint, ClipTokenizer(checkpoint.source, checkpoint.spec.text), backend)


def test_the_cuda_stepper_serves_the_same_bits_in_any_company(cuda: Model) -> None:
    asked = [replaced for seed in range(3) for replaced in ({**APPLE, "seed": seed}, {**CAT, "seed": seed})]
    pictures = []
    for seats in (1, 3):
        with running(cuda, seats=seats) as at_work:
            at_work.device.preview.map()
            jobs = [at_work.submit(**fields, preview_every=1) for fields in asked]
            for job in jobs:
                assert isinstance(box_of(job).end(), Done)
            pictures.append([box_of(job).images[0] for job in jobs])
            assert any(isinstance(event, Preview) for event in box_of(jobs[0]).events)
            assert at_work.leftovers == []
    for single, shared in zip(*pictures, strict=True):
        np.testing.assert_array_equal(single, shared)
    assert not np.array_equal(pictures[0][0], pictures[0][2]), "another seed, another picture"


def test_nan_fails_alone(cuda: Model) -> None:
    """A table that is not a number: its picture fails, its neighbour's does not."""
    with running(cuda, seats=2) as at_work:
        bad, good = at_work.submit(**APPLE), at_work.submit(**CAT)
        assert isinstance(box_of(good).end(), Done) and isinstance(box_of(bad).end(), Done)
        stepper = next(iter(at_work.device._lanes._steppers.values()))
        sit = stepper.sit

        def poisoned(seat: int, sitting: Sitting) -> None:
            if sitting.table.evaluations == 3:
                sitting = replace(sitting, table=replace(sitting.table, initial_scale=float("nan")))
            sit(seat, sitting)

        stepper.sit = poisoned  # type: ignore[method-assign]
        bad, good = at_work.submit(**APPLE), at_work.submit(**CAT)
        assert box_of(bad).error() == ("INTERNAL", "image 0 came out as not a number")
        assert isinstance(box_of(good).end(), Done)
