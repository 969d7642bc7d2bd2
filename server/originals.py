"""Originals: the pictures that requests begin with, read and encoded beside the event loop and beside the steps."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from engines.model import Model
from pipeline.arrays import F32
from pipeline.conditions.original import Encoded, encoded
from server.batching.admission import Reading
from server.batching.pace import Median
from server.errors import Busy, Cancelled, NotServing
from server.metrics import Metrics
from server.request import ImageRequest
from server.upload import original_of
from server.wish import Wish

Values = ParamSpec("Values")
Value = TypeVar("Value")
Stay = Callable[[], None]  # raises Cancelled once nobody waits any more

_AT_ONCE = 2  # each may take 200 MB for a moment: a picture of 16 megapixels, decoded and laid on white
_WAITING = 32  # each holds its message


class Kind(NamedTuple):
    """Says what is done with pictures: what is alike takes as long each time."""

    what: Hashable
    pictures: int = 1


class Originals:
    """Reads pictures in threads of its own. Used from one event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="originals")
        self._metrics = metrics
        self._here: dict[Future[Any], float] = {}  # what is being read or waits for it, with the seconds that it takes
        self._waiters: set[asyncio.Future[Any]] = set()
        self._took: defaultdict[Hashable, Median] = defaultdict(Median)  # seconds of a picture
        self._dismissed: str | None = None  # why nobody waits any more

    @property
    def at_work(self) -> bool:
        """Return whether a picture is being read, no matter who waits for it."""
        return bool(self._here)

    def expected(self, kinds: Sequence[Kind]) -> Reading:
        """Forecast what these take, one after the other, and what is here already takes before."""
        return Reading(sum(list(self._here.values())) / _AT_ONCE, sum(map(self._seconds, kinds)))

    async def of(self, request: ImageRequest, wish: Wish, model: Model) -> Encoded:
        """Decode, fit and encode a request's picture and mask.

        Errors: Busy; InvalidRequest naming the field; those of Backend.moments.
        """
        return await self.apart(original_kind(wish), _read, request, wish, model)

    async def apart(
        self,
        kind: Kind,
        work: Callable[Concatenate[Stay, Values], Value],
        *values: Values.args,
        **named: Values.kwargs,
    ) -> Value:
        """Return what `work` makes of `values`, in a thread of this pool.

        `work` calls what it gets first now and then, which ends it when nobody waits any more: the client went away, or
        the deadline passed. Errors: Busy; NotServing; those of `work`.
        """
        if self._dismissed is not None:
            raise NotServing(self._dismissed)
        if (here := len(self._here)) >= _WAITING:
            raise Busy(f"{here} requests wait for their pictures to be read; at most {_WAITING} may", 1.0)
        gone = threading.Event()

        def stay() -> None:
            if gone.is_set():
                raise Cancelled("the client went away")

        def timed() -> Value:
            start = time.monotonic()
            value = work(stay, *values, **named)
            self._took[kind.what].add((time.monotonic() - start) / kind.pictures)
            return value

        reading = self._pool.submit(timed)
        self._here[reading] = self._seconds(kind)
        self._count()
        reading.add_done_callback(self._over)
        waiting = asyncio.wrap_future(reading)
        self._waiters.add(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            gone.set()
            reading.cancel()  # where it has not begun, it never will
            task = asyncio.current_task()
            if self._dismissed is None or (task is not None and task.cancelling()):  # by who waits
                raise
            raise NotServing(self._dismissed) from None
        finally:
            self._waiters.discard(waiting)

    def dismiss(self, why: str) -> None:
        """Tell all who wait here, and who comes from now on, that this server serves no more: `why`."""
        self._dismissed = why
        for waiting in self._waiters:
            waiting.cancel()

    def close(self) -> None:
        """Read no more pictures. One that is being read is not waited for: a decoder cannot be interrupted."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _seconds(self, kind: Kind) -> float:
        took = self._took.get(kind.what)
        return 0.0 if took is None else kind.pictures * took.value

    def _over(self, reading: Future[Any]) -> None:
        del self._here[reading]
        self._count()

    def _count(self) -> None:
        self._metrics.reading_backlog.set(len(self._here))


def original_kind(wish: Wish) -> Kind:
    """Return what it is to read a picture to begin with: encoding it takes most of that, and goes by its size here."""
    return Kind(("original", wish.size))


STYLE = Kind("style")
MASK = Kind("mask")


def _read(stay: Stay, request: ImageRequest, wish: Wish, model: Model) -> Encoded:
    assert request.init_image is not None
    original = original_of(request.init_image, request.mask, wish.size, wish.fit)

    def moments(picture: F32) -> F32:
        stay()
        return model.backend.moments(picture)

    return encoded(original, model.spec, moments)
