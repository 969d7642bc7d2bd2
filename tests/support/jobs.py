"""Jobs without a door: what was asked for, and a mailbox that keeps everything."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from engines.generate import generate
from engines.model import Model
from pipeline.conditions.interval import WHOLE, Interval
from pipeline.prompt import Prompt
from pipeline.samplers import Table
from server.batching.admission import Admission
from server.caller import LOCAL
from server.device.loop import Device
from server.events import Event, Failed, Image, Started
from server.job import Job
from server.limits import Limits
from server.mailbox import is_last
from server.metrics import Metrics
from server.request import ImageRequest
from server.wish import LaneKey, Size, Wish
from tests.support.patience import PATIENCE

Pixels = NDArray[np.uint8]

SMALL = LaneKey(width=8, height=8, chunks=1)


class Box:
    """Stands for a mailbox: keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._over = threading.Event()

    def post(self, event: Event) -> None:
        self.events.append(event)
        if is_last(event):
            self._over.set()

    def end(self) -> Event:
        """The event that ended the job, once it has come."""
        assert self._over.wait(PATIENCE), f"the job does not end: {self.events}"
        return next(event for event in self.events if is_last(event))

    def error(self) -> tuple[str, str]:
        """Code and sentence of the job's failure."""
        end = self.end()
        assert isinstance(end, Failed), end
        return end.error.code, str(end.error)

    @property
    def started(self) -> list[int]:
        return [event.index for event in self.events if isinstance(event, Started)]

    @property
    def images(self) -> dict[int, Pixels]:
        return {event.index: decoded(event.data) for event in self.events if isinstance(event, Image)}

    @property
    def ends(self) -> int:
        return sum(map(is_last, self.events))


def decoded(data: bytes) -> Pixels:
    return np.asarray(PILImage.open(io.BytesIO(data)))


def job_of(
    model: Model,
    sizes: list[Size] | None = None,
    deadline: float | None = None,
    caller: str = LOCAL,
    **fields: Any,
) -> Job:
    """A job as a door makes it from an ImageRequest of these fields; `box_of` has its events."""
    default = model.spec.defaults
    wish = Wish.of(ImageRequest(**fields), model, sizes or [(default.width, default.height)], Limits(steps=700))
    return Job("some-id", wish, Box(), time.monotonic(), deadline, caller)  # type: ignore[arg-type]


def box_of(job: Job) -> Box:
    assert isinstance(job.mailbox, Box)
    return job.mailbox


def alone(model: Model, **fields: Any) -> Pixels:
    """The picture that an ImageRequest of these fields means, made with nobody beside it."""
    fields = {name: value for name, value in fields.items() if name not in ("images", "priority", "preview_every")}
    return generate(model, fields.pop("prompt", ""), fields.pop("negative_prompt", ""), **fields)


class Running:
    """A device at work, its metrics, and how often it said that it died."""

    def __init__(self, model: Model, seats: int, sizes: list[Size], admission: Admission, chunks: int) -> None:
        self.metrics = Metrics(model.id)
        self.deaths = 0
        self.device = Device(
            model,
            sizes=sizes,
            seats=seats,
            steps=700,
            chunks=chunks,
            admission=admission,
            metrics=self.metrics,
            workers=2,
            died=self._died,
        )
        self._model = model

    def _died(self) -> None:
        self.deaths += 1

    def submit(self, **fields: Any) -> Job:
        job = job_of(self._model, self.device.sizes, **fields)
        self.device.submit(job)
        return job

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"latentd_{name}", {"model": self._model.id, **labels})

    @property
    def leftovers(self) -> list[Any]:
        """All that a device keeps about jobs; empty when there are none."""
        device = self.device
        seated = [tenant for lane in device._batcher.lanes.values() for tenant in lane.tenants if tenant]
        return [*device._jobs, *device._decoding.pictures, *device._batcher.waiting, *seated]


@contextlib.contextmanager
def running(
    model: Model,
    seats: int = 2,
    sizes: list[Size] | None = None,
    admission: Admission | None = None,
    ready: Callable[[], object] = lambda: None,
    chunks: int = 1,
) -> Iterator[Running]:
    """`ready` is called when the engines have been warmed up and before any job."""
    default = model.spec.defaults
    at_work = Running(model, seats, sizes or [(default.width, default.height)], admission or Admission(), chunks)
    ready()
    at_work.device.start()
    try:
        yield at_work
    finally:
        at_work.device.stop()


def wish(
    lane: LaneKey = SMALL,
    evaluations: int = 4,
    rows: int = 2,
    images: int = 1,
    priority: int = 0,
    seed: int = 0,
    interval: Interval = WHOLE,
    keep: int | None = None,
) -> Wish:
    """A wish with the numbers that admission and the batcher look at; no model stands behind it."""
    table = Table(
        matrices=np.zeros((evaluations, 6, 7)),
        timesteps=np.zeros(evaluations),
        input_scales=np.ones(evaluations),
        steps_done=np.arange(1, evaluations + 1),
        noise=np.full(evaluations, -1),
        levels=np.zeros((evaluations + 1, 2)),
        initial_scale=1.0,
    )
    ids = np.zeros((lane.chunks, 4), np.int64)
    prompt = Prompt(ids, np.ones(ids.shape, np.float32), ids[0], skip=0, cut=False)
    return Wish(
        size=(lane.width, lane.height),
        steps=evaluations,
        guidance=3.0 if rows == 2 else 1.0,
        sampler="ddim",
        seed=seed,
        images=images,
        format="png",
        quality=None,
        preview_every=0,
        priority=priority,
        table=table,
        prompt=prompt,
        negative=prompt if rows == 2 else None,
        interval=interval,
        keep=keep,
    )


def idle_job(asked: Wish, id: str = "j") -> Job:
    return Job(id, asked, Box(), 0.0)  # type: ignore[arg-type]
