"""The service does for every door what each does with a request: the same checks, the same errors, the same events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engines.model import Model
from pipeline.loras.shelf import Listed
from server.access.key import Key, by_key
from server.caller import LOCAL, check_priority
from server.device.fitting import Fitting
from server.device.holds import Holds
from server.device.judging import Ranks, judge_for, ranks_of, style_of
from server.device.loop import Device
from server.errors import Draining, Loading, TooLate, UnknownModel, code_of
from server.events import Done, Event, Failed
from server.job import Job
from server.limits import Limits
from server.mailbox import Mailbox, is_last
from server.metrics import Metrics
from server.originals import LORAS, MASK, STYLE, Kind, Originals, Stay, chosen_of, original_kind
from server.request import ImageRequest
from server.tracing.traced_id import trace_of
from server.wish import Wish

if TYPE_CHECKING:  # it needs OpenTelemetry, which is not asked for unless traces are
    from server.tracing.tracing import Tracing

log = logging.getLogger("latentd.request")


@dataclass(frozen=True)
class Accepted:
    """Holds a job that was let in."""

    job: Job
    ahead: int  # pictures that wait before it


class Service:
    """Serves one model to any number of doors. `device` is None until it is loaded.

    Another one may take over: then `before` is that of the model before, until nobody has anything to do with it.
    `key_of`: the key that a caller came with, None where it came without.
    """

    def __init__(
        self,
        model_id: str,
        limits: Limits,
        metrics: Metrics,
        key_of: Callable[[str], Key | None] = lambda caller: None,
    ) -> None:
        self._key_of = key_of
        self.model_id = model_id
        self.limits = limits
        self.metrics = metrics
        self.device: Device | None = None
        self.before: Device | None = None
        self.draining = False
        self.tracing: Tracing | None = None  # None: requests are not traced
        self.holds = Holds()
        self._originals = Originals(metrics)
        self._fitting = Fitting()
        metrics.queue_wait_seconds.set_function(lambda: 0.0 if self.device is None else self.device.queue_wait())

    def ready(self) -> Device:
        """Return the device that serves. Errors: NotServing while it loads or the server drains."""
        if self.device is None:
            raise Loading(f"model {self.model_id} is loading; health says SERVING when it is done")
        if self.draining:
            raise Draining
        return self.device

    @property
    def devices(self) -> list[Device]:
        """List the device that serves and the one before, as far as they are here."""
        return [device for device in (self.device, self.before) if device]

    def holding(self, model: str | None = None) -> contextlib.AbstractContextManager[Device]:
        """Give a request the device that serves a model; it stays during the block, whatever takes over meanwhile.

        A door whose request waits for anything before its last `submit` holds it all the while, so that all of the
        request is one model's. Errors: UnknownModel; NotServing.
        """
        return self.holds.of(self._named(model))

    def ahead(self, job: Job) -> int | None:
        """Count the pictures that will be seated before a job's first; None where none of it waits any more."""
        return next((ahead for device in self.devices if (ahead := device.ahead(job)) is not None), None)

    def succeed(self, device: Device) -> None:
        """Have another device, which is started, take over."""
        self.before, self.device = self.device, device
        self.model_id, self.metrics = device.model.id, device.metrics
        self._fitting.forget()
        self._originals.forget()

    def dismiss(self, why: str) -> None:
        """End every request whose pictures are read or wait for it, saying `why`; queued ones are the device's."""
        self._originals.dismiss(why)

    def close(self) -> None:
        """Read no more pictures; one that is being read is not waited for."""
        self._originals.close()

    @property
    def reads(self) -> bool:
        """Return whether a picture is being read, in a thread that nobody waits for."""
        return self._originals.at_work

    async def submit(
        self,
        request: ImageRequest,
        request_id: str,
        seconds_left: float | None,
        arrived: float | None = None,
        caller: str = LOCAL,
        device: Device | None = None,
    ) -> Accepted:
        """Check, admit and queue. `arrived`: when the door heard of it, monotonic seconds; None: just now.

        `caller`: whose it is, as server/caller.py names it; callers share the device. `device`: the one that the door
        is holding for it; None: the one that serves its model now.
        A picture to begin with is read and encoded first, unless the request would not be done in time with that and
        what waits for it; a request without one is queued before this first waits.
        Errors: any LatentdError, each with its code.
        """
        now = time.monotonic()
        if device is None:
            with self.holding(request.model) as held:
                return await self.submit(request, request_id, seconds_left, arrived or now, caller, held)
        self.ready()
        wish = Wish.of(request, device.model, device.sizes, self.limits)
        key = self._key_of(caller)
        most = None if key is None else key.priority
        check_priority(wish.priority, caller, self.limits.priority_callers, most)
        deadline = None if seconds_left is None else now + seconds_left
        if request.loras:
            try:
                async with asyncio.timeout(seconds_left):
                    wish = await self._with_loras(caller, request.loras, wish, device.model)
            except TimeoutError:
                raise TooLate("the deadline passed before the LoRAs were read") from None
        mailbox = Mailbox(asyncio.get_running_loop(), progress=request.progress is not False)
        weight = 1.0 if key is None else key.weight
        job = Job(request_id, wish, mailbox, arrived or now, deadline, caller, weight, device.model.id)
        trace = trace_of(request_id)
        if trace and trace.recorded:
            job.timings.evaluations = []
        kinds = [original_kind(wish)] * (request.init_image is not None) + [STYLE] * (request.style_image is not None)
        if kinds:
            device.foresee(job, self._originals.expected(caller, kinds), first=not self._originals.at_work)
            try:
                left = None if deadline is None else deadline - time.monotonic()  # LoRAs may have taken a while
                async with asyncio.timeout(left):
                    await self._read(request, job, device.model)
            except TimeoutError:
                raise TooLate("the deadline passed before the pictures were read") from None
            job.timings.read = time.monotonic()
        ahead = device.submit(job)
        if trace:
            trace.jobs.append(job)
        return Accepted(job, ahead)

    async def _with_loras(self, caller: str, loras: Sequence[tuple[str, float]], wish: Wish, model: Model) -> Wish:
        """Return the wish with LoRAs that have been read, so that what is wrong with one is told now. Errors: Busy."""
        chosen = await self._originals.apart(caller, LORAS, chosen_of, loras, model)
        return replace(wish, loras=chosen, rank=chosen.rank)

    async def _read(self, request: ImageRequest, job: Job, model: Model) -> None:
        """Read the pictures of a request, and put what is read into its job's wish."""
        wish = job.wish
        if request.init_image is not None:
            wish = replace(wish, start=await self._originals.of(job.caller, request, wish, model))
        if (style := request.style_image) is not None:
            read = await self._originals.apart(job.caller, STYLE, style_of, style, wish, model)
            wish = replace(wish, style=read)
        job.wish = wish

    async def with_mask(self, caller: str, work: Callable[[bytes], bytes], mask: bytes) -> bytes:
        """Return what `work` makes of a caller's mask, in one of the few threads that read pictures.

        Errors: Busy; NotServing; those of `work`.
        """
        return await self._originals.apart(caller, MASK, lambda _, mask: work(mask), mask)

    async def rank(self, caller: str, model: str | None, pictures: Sequence[bytes], texts: Sequence[str]) -> Ranks:
        """Score a caller's picture files against texts, beside the steps. None is begun when the client has gone.

        Errors: InvalidRequest naming the field, also where there is no judge; UnknownModel; NotServing; Busy.
        """
        with self.holding(model) as device:
            judge = judge_for(device.model, pictures, texts, self.limits)

            def ranked(stay: Stay) -> Ranks:
                with device.judging(len(pictures)):
                    return ranks_of(stay, judge, pictures, texts)

            return await self._originals.apart(caller, Kind("rank", len(pictures)), ranked)

    def _named(self, model: str | None) -> Device:
        """Return the device that serves a model. Errors: UnknownModel; NotServing."""
        if (device := self.ready()) and model not in (None, self.model_id):
            raise UnknownModel(f"model is {model[:64]!r}; this server has {self.model_id}")
        return device

    async def loras(self) -> list[Listed]:
        """List the model's LoRAs as the folder is now. Errors: NotServing."""
        shelf = self.ready().model.loras
        return [] if shelf is None else await asyncio.to_thread(shelf.listed)

    async def previews(self, device: Device | None = None) -> None:
        """Wait until previews can be made: a short request would be over before its first. See begin_previews."""
        if self.ready() and (fitting := self.begin_previews(device)) is not None:
            await asyncio.shield(fitting)

    def begin_previews(self, device: Device | None = None) -> asyncio.Task[None] | None:
        """Begin to fit the map that previews need; None: nothing to wait for. Where it fails there are no previews."""
        if self.device is None or self.draining or device not in (None, self.device):
            return None
        return self._fitting.begin(self.device.preview)

    async def events(self, job: Job) -> AsyncIterator[Event]:
        """Yield a job's events up to Done, and leave the job not running, however that ends.

        Errors: those that the job failed with.
        """
        try:
            while True:
                for event in await job.mailbox.take():
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Done):
                        event.timings.delivered = time.monotonic()
                    yield event
                    if is_last(event):
                        return
        finally:
            job.cancel()  # of no effect on a job that is done

    def ended(
        self,
        door: str,
        error: BaseException | None,
        job: Job | None,
        request_id: str,
        started: float,
        left: float | None = None,
    ) -> None:
        """Count and log a request's end, one line and never its prompt, and leave its job not running.

        `error`: what ended it, None where it was answered; asyncio's CancelledError where its client left. `left`:
        seconds until the client's deadline then.
        """
        code, reason = code_of(error, left)
        now = time.monotonic()
        took = now - started
        if job is not None:
            job.cancel()  # of no effect on a job that is done; who sees its end counted can rely on it
        self.metrics.request(door, code, took, "" if job is None else job.model)
        details = ""
        if job is not None:
            wish, timings = job.wish, job.timings
            details = f" caller={job.caller}" if by_key(job.caller) else ""  # an address is no business of a log's
            details += (
                f" size={wish.size[0]}x{wish.size[1]} images={wish.images} steps={wish.steps}"
                f" guidance={wish.guidance:g} sampler={wish.sampler} seed={wish.seed}"
                f" {' '.join(f'{part}_ms={ms:.0f}' for part, ms in timings.parts(now).items())}"
                f" seats_shared={timings.seats_shared:.1f}"
            )
        level = logging.INFO if code in ("OK", "CANCELLED") else logging.WARNING
        log.log(
            level,
            "door=%s code=%s ms=%.0f%s%s",
            door,
            code,
            1e3 * took,
            details,
            f" reason={reason!r}" if reason else "",
            extra={"request": request_id},
        )
        if trace := trace_of(request_id):
            trace.end(code, reason, now)


__all__ = ["Accepted", "Service"]
