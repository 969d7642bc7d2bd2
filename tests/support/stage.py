"""Turns taken by hand: no thread, no loop, a backend that only writes down what it is called for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from engines.backend import Pending, Ready
from engines.preview import ColourMap
from engines.preview import Preview as PreviewMap
from engines.seat import Sitting
from pipeline.arrays import F32, Pixels
from pipeline.conditions.text import Encoded
from pipeline.loras.lora import Lora
from server.batching.batcher import Batcher
from server.caller import LOCAL
from server.device.decoding import Decoding
from server.device.delivery import Delivery
from server.device.jobs import Jobs
from server.device.lanes import Lanes
from server.device.turn import Turn
from server.events import Event, Failed
from server.job import Job, Picture
from server.metrics import Metrics
from server.pace.pace import Pace
from server.wish import LaneKey
from tests.support.jobs import box_of, idle_job, wish

SMALL, LARGE, LONG = LaneKey(8, 8, 1), LaneKey(16, 8, 1), LaneKey(8, 8, 2)
EVALUATIONS = 2  # of every picture
Call = tuple[Any, ...]


class Writing:
    """Stands for a backend and writes down its calls; a `before` may raise, or do what others do meanwhile."""

    makes_beside = False

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.before: dict[str, Callable[[], object]] = {}
        self.ready = True  # is a picture, as soon as it is begun?

    def breaks(self, name: str, error: Exception) -> None:
        """The next call of this name fails, and the ones after it do not."""

        def fail() -> None:
            del self.before[name]
            raise error

        self.before[name] = fail

    def note(self, name: str, *details: Any) -> None:
        self.before.get(name, lambda: None)()
        self.calls.append((name, *details))

    def encode_text(self, ids: np.ndarray, skip: int, lora: Lora | None) -> Encoded:
        self.note("encode", int(ids[0]))
        return Encoded(np.zeros((len(ids), 3), np.float32))

    def row_seconds(self, width: int, height: int, chunks: int, rank: int) -> float:
        return 0.1

    def stepper(self, width: int, height: int, seats: int, chunks: int, steps: int, rank: int) -> Seats:
        lane = LaneKey(width, height, chunks, rank)
        self.note("make", lane)
        return Seats(self, lane)

    def picture(self, latents: Pending[F32]) -> Pending[Pixels | None]:
        self.note("picture", int(latents.get()[0, 0, 0]))
        pixels = Ready(np.zeros((8, 8, 3), np.uint8))
        return pixels if self.ready else SimpleNamespace(ready=lambda: self.ready, get=pixels.get)  # type: ignore[return-value]


class Seats:
    """The stepper of a lane; latents are full of the seat's number."""

    def __init__(self, backend: Writing, lane: LaneKey) -> None:
        self._backend, self._lane = backend, lane
        self._reached: dict[int, int] = {}

    def sit(self, seat: int, sitting: Sitting) -> None:
        resumed = () if sitting.state is None else (("from", sitting.start, int(sitting.state[0, 0, 0, 0])),)
        self._backend.note("sit", self._lane, seat, *resumed)
        self._reached[seat] = sitting.start

    def leave(self, seat: int) -> None:
        self._backend.note("leave", self._lane, seat)

    def pause(self, seat: int) -> Pending[F32]:
        self._backend.note("pause", self._lane, seat)
        return Ready(np.full((5, 1, 1, 1), seat, np.float32))

    def step(self, seats: Sequence[int], predict: Collection[int] = ()) -> None:
        self._backend.note("step", self._lane, list(seats), list(predict))
        for seat in seats:
            self._reached[seat] += 1

    def reached(self, seat: int) -> int:
        return self._reached[seat]

    def finished(self, seat: int) -> bool:
        return self._reached[seat] == EVALUATIONS

    def pending_latents(self, seat: int) -> Pending[F32]:
        return Ready(np.full((1, 1, 1), seat, np.float32))

    pending_prediction = pending_latents


class Fitted(PreviewMap):
    """A map that is known: of one latent channel to three colours."""

    def __init__(self) -> None:
        self._map = ColourMap(np.zeros((3, 10), np.float32), 1.0)


class Here(Delivery):
    """Writes files and previews here and now."""

    def picture(self, picture: Picture, pixels: Pixels) -> None:
        self._write(picture, pixels)

    def preview(self, picture: Picture, step: int, prediction: Pending[F32]) -> None:
        picture.previews_under_way += 1
        self._preview(picture, step, prediction)


class Flat(Pace):
    """Knows that all may step together, however long these steps really take."""

    def step(self, lane: LaneKey, rows: int) -> float:
        return 1.0


class Stage:
    """All that a turn needs."""

    def __init__(self, seats: int = 2, lanes: Sequence[LaneKey] = (SMALL,), loras: Any = None) -> None:
        self.backend = Writing()
        spec = SimpleNamespace(
            latent_shape=lambda width, height: (1, height, width),
            unet=SimpleNamespace(size_width=0, pooled_width=0, context_width=3),
            text=SimpleNamespace(tokens=4),
        )
        model: Any = SimpleNamespace(spec=spec, backend=self.backend, loras=loras)
        self._metrics = metrics = Metrics("m")
        self.batcher = Batcher(lanes, seats)
        self._lanes = Lanes(model, seats, EVALUATIONS, metrics, lambda: None)
        self._pace = Flat({lane: self._lanes.warm(lane) for lane in lanes})
        self.jobs = Jobs(self.batcher, self._pace, metrics, EVALUATIONS)
        delivery = Here(1, Fitted(), self._pace, metrics, self.jobs.forget)
        self.decoding = Decoding(model.backend, delivery, self._pace, metrics)
        self.turn = Turn(
            model,
            jobs=self.jobs,
            lanes=self._lanes,
            pace=self._pace,
            decoding=self.decoding,
            delivery=delivery,
            metrics=metrics,
        )
        self.turn.between = 0.0  # one prompt, one picture between two steps, however short both are here
        self.backend.calls.clear()

    def submit(
        self,
        word: int = 0,
        lane: LaneKey = SMALL,
        images: int = 1,
        preview_every: int = 0,
        deadline: float | None = None,
        caller: str = LOCAL,
    ) -> Job:
        """A job as Device lets it in, its prompts made of one token; tests start with none that is remembered."""
        plain = wish(lane, EVALUATIONS, images=images)
        prompt = dataclasses.replace(plain.prompt, ids=np.full_like(plain.prompt.ids, word))
        job = idle_job(dataclasses.replace(plain, prompt=prompt, negative=prompt, preview_every=preview_every))
        job.deadline, job.caller = deadline, caller
        if self.batcher.open(lane):
            self._pace.open(lane)
        self.jobs.add(job)
        job.wake = self.jobs.wake
        job.wake()
        return job

    def metric(self, name: str, **labels: str) -> float | None:
        return self._metrics.registry.get_sample_value(f"latentd_{name}", {"model": "m", **labels})

    def take(self) -> list[Call]:
        """The calls of one turn."""
        self.turn.take()
        calls, self.backend.calls[:] = self.backend.calls[:], []
        return calls

    @property
    def empty(self) -> bool:
        """Has everybody gone, and is nothing left to do?"""
        sits = any(lane.live for lane in self.batcher.lanes.values())
        return not (len(self.jobs) or self.batcher.waiting or sits or self.decoding.pictures or self.turn.due)


def ended(job: Job) -> tuple[str, str]:
    """Code and sentence of a job's failure."""
    (failed,) = (event for event in box_of(job).events if isinstance(event, Failed))
    return failed.error.code, str(failed.error)


def kinds(job: Job) -> list[type[Event]]:
    return [type(event) for event in box_of(job).events]
