"""Originals: the pictures that requests begin with, read and encoded beside the event loop and beside the steps.

Callers take turns, so that who sends many pictures, or has many ranked, holds nobody else up for longer than one each.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from engines.model import Model
from pipeline.arrays import F32
from pipeline.conditions.original import Encoded, encoded
from pipeline.errors import CheckpointError, InvalidRequest
from pipeline.loras.shelf import Chosen
from server.batching.admission import Reading
from server.errors import Busy, Cancelled, NotServing
from server.limits import decimal
from server.metrics import Metrics
from server.pace.median import Median
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


@dataclass(eq=False)
class _Entry:
    """Holds what is to be done with a request's pictures."""

    caller: str
    seconds: float  # that it takes
    work: Callable[[], Any] = field(repr=False)
    reading: Future[Any] = field(default_factory=Future)

    def run(self) -> None:
        if not self.reading.set_running_or_notify_cancel():
            return
        try:
            value = self.work()
        except BaseException as error:  # whatever it is, somebody waits for an answer
            self.reading.set_exception(error)
        else:
            self.reading.set_result(value)


class Originals:
    """Reads pictures in threads of its own. Used from one event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="originals")
        self._metrics = metrics
        self._lock = threading.Lock()  # guards the two that follow
        self._begun: set[_Entry] = set()
        self._lines: dict[str, deque[_Entry]] = {}  # of each caller, none empty; the first one's turn is next
        self._waiters: set[asyncio.Future[Any]] = set()
        self._took: defaultdict[Hashable, Median] = defaultdict(Median)  # seconds of a picture
        self._dismissed: str | None = None  # why nobody waits any more

    @property
    def at_work(self) -> bool:
        """Return whether a picture is being read, no matter who waits for it."""
        return bool(self._begun or self._lines)

    def expected(self, caller: str, kinds: Sequence[Kind]) -> Reading:
        """Forecast what a caller's take, one after the other, and what comes before them."""
        with self._lock:
            mine = self._lines.get(caller, ())
            turns = len(mine) + 1
            others = (itertools.islice(line, turns) for other, line in self._lines.items() if other != caller)
            before = [entry.seconds for entry in itertools.chain(self._begun, mine, *others)]
        return Reading(sum(before) / _AT_ONCE, sum(map(self._seconds, kinds)))

    async def of(self, caller: str, request: ImageRequest, wish: Wish, model: Model) -> Encoded:
        """Decode, fit and encode a request's picture and mask.

        Errors: Busy; InvalidRequest naming the field; those of Backend.moments.
        """
        return await self.apart(caller, original_kind(wish), _read, request, wish, model)

    async def apart(
        self,
        caller: str,
        kind: Kind,
        work: Callable[Concatenate[Stay, Values], Value],
        *values: Values.args,
        **named: Values.kwargs,
    ) -> Value:
        """Return what `work` makes of a caller's `values`, in a thread of this pool.

        `work` calls what it gets first now and then, which ends it when nobody waits any more: the client went away, or
        the deadline passed. Errors: Busy; NotServing; those of `work`.
        """
        if self._dismissed is not None:
            raise NotServing(self._dismissed)
        gone = threading.Event()

        def stay() -> None:
            if gone.is_set():
                raise Cancelled("the client went away")

        def timed() -> Value:
            start = time.monotonic()
            value = work(stay, *values, **named)
            self._took[kind.what].add((time.monotonic() - start) / kind.pictures)
            return value

        reading = self._entered(_Entry(caller, self._seconds(kind), timed))
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

    def forget(self) -> None:
        """Forget how long pictures took: another model reads them from now on."""
        self._took.clear()

    def close(self) -> None:
        """Read no more pictures. One that is being read is not waited for: a decoder cannot be interrupted."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _seconds(self, kind: Kind) -> float:
        took = self._took.get(kind.what)
        return 0.0 if took is None else kind.pictures * took.value

    def _entered(self, entry: _Entry) -> Future[Any]:
        """Let an entry in, at the end of its caller's line. Errors: Busy.

        When it is full, a caller with less than an equal part may still enter, up to twice as many in all.
        """
        with self._lock:
            here = [*self._begun, *itertools.chain.from_iterable(self._lines.values())]
            mine = sum(1 for other in here if other.caller == entry.caller)
            part = _WAITING // len({entry.caller, *(other.caller for other in here)})
            if len(here) >= _WAITING and (mine >= part or len(here) >= 2 * _WAITING):
                more = "" if part == _WAITING else f", and beyond them {part} of a caller"
                sentence = f"{len(here)} requests wait for their pictures to be read; at most {_WAITING} may{more}"
                raise Busy(sentence, 1.0)
            self._lines.setdefault(entry.caller, deque()).append(entry)
            self._count()
        entry.reading.add_done_callback(lambda _: self._over(entry))
        self._pool.submit(self._next)
        return entry.reading

    def _next(self) -> None:
        """Take an entry of the caller whose turn it is. Called once for each entry, by the pool."""
        with self._lock:
            if not self._lines:  # somebody has left
                return
            caller = next(iter(self._lines))
            line = self._lines.pop(caller)
            entry = line.popleft()
            if line:
                self._lines[caller] = line  # behind the others
            self._begun.add(entry)
        entry.run()

    def _over(self, entry: _Entry) -> None:
        """Forget an entry that is done, or whose client has gone."""
        with self._lock:
            self._begun.discard(entry)
            line = self._lines.get(entry.caller, deque())
            if entry in line:
                line.remove(entry)
                if not line:
                    del self._lines[entry.caller]
            self._count()

    def _count(self) -> None:
        """Tell how many are here. Called with the lock held."""
        self._metrics.reading_backlog.set(len(self._begun) + sum(map(len, self._lines.values())))


def original_kind(wish: Wish) -> Kind:
    """Return what it is to read a picture to begin with: encoding it takes most of that, and goes by its size here."""
    return Kind(("original", wish.size))


STYLE = Kind("style")
MASK = Kind("mask")
LORAS = Kind("loras")


def chosen_of(stay: Stay, loras: Sequence[tuple[str, float]], model: Model) -> Chosen:
    """Open and read the LoRAs that a request names; who sits down soon finds them in memory. Errors: InvalidRequest."""
    assert model.loras is not None
    chosen = model.loras.chosen([(name, decimal(weight)) for name, weight in loras])
    stay()
    try:
        model.loras.check(chosen)
    except CheckpointError as error:
        raise InvalidRequest(f"loras: {error}", "loras") from None
    return chosen


def _read(stay: Stay, request: ImageRequest, wish: Wish, model: Model) -> Encoded:
    assert request.init_image is not None
    original = original_of(request.init_image, request.mask, wish.size, wish.fit)

    def moments(picture: F32) -> F32:
        stay()
        return model.backend.moments(picture)

    return encoded(original, model.spec, moments)
