"""One model succeeds another: it is made ready beside the one that is served, takes over, and the old one is drained.

Until it takes over nothing of the old one is touched, so that whatever goes wrong leaves it serving.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from engines.choice import Choice
from engines.cuda import gpu
from engines.machine import memory
from engines.model import Model, on_gpu
from engines.process.exporting import purpose, stop_exports
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.errors import LatentdError
from server.device.loop import Device
from server.errors import UNEXPECTED, Cancelled, NotServing, SwapRefused, UnknownModel
from server.models.folder import Folder
from server.models.loading import Stage
from server.models.room import Room
from server.service import Service

log = logging.getLogger("latentd.swap")


# Makes a device of a model, and does not start it: its path, what a single file predicts, and who hears of stages.
Make = Callable[[Path, str, Callable[[Stage], None]], Device]


@dataclass(frozen=True)
class Progress:
    """Says how far a swap has come."""

    stage: Stage
    seconds: float  # since it began
    left: int  # requests that the old model has not finished, while it drains


class Underway:
    """Holds one swap: the thread that makes its model ready, and whoever watches it, from the event loop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._stages = [Stage.CHECKING]  # reached so far
        self.error: LatentdError | None = None
        self._begun = time.monotonic()
        self._cancelled = threading.Event()
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()

    @property
    def stage(self) -> Stage:
        return self._stages[-1]

    def reach(self, stage: Stage) -> None:
        """Begin a stage. Called by any thread. Errors: Cancelled, before it serves."""
        if self.cancelled:
            raise self.cancellation()
        self._stages.append(stage)
        self._loop.call_soon_threadsafe(self._changed.set)

    def end(self, error: LatentdError | None = None) -> None:
        """End it, well or with an error."""
        self.error = self.error or error
        self._stages.append(Stage.DONE)
        self._changed.set()

    def cancel(self) -> None:
        """Have it end before the next stage, where that is not DRAINING or later."""
        if self.stage < Stage.DRAINING:
            self._cancelled.set()
            stop_exports(self)  # and not those that the model that is served waits for

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancellation(self) -> Cancelled:
        return Cancelled(f"the swap to {self.name} was cancelled")

    def progress(self, left: int) -> Progress:
        return Progress(self.stage, time.monotonic() - self._begun, left if self.stage is Stage.DRAINING else 0)

    async def stages(self) -> AsyncGenerator[Stage]:
        """Yield each stage once it is reached. Errors: the one that it ended with."""
        for number in itertools.count():
            while number == len(self._stages):
                await self._changed.wait()
                self._changed.clear()
            if (stage := self._stages[number]) is Stage.DONE and self.error is not None:
                raise self.error
            yield stage
            if stage is Stage.DONE:
                return


class Succession:
    """Swaps the service's model, one swap at a time. Used from one event loop, once the first model is loaded.

    `serves` hears of a device that serves from now on, `gone` of one that has stopped.
    """

    def __init__(
        self,
        service: Service,
        folder: Folder,
        make: Make,
        serves: Callable[[Device], object],
        gone: Callable[[Device], Awaitable[object]],
    ) -> None:
        self._service, self._folder, self._make = service, folder, make
        self._serves, self._gone = serves, gone
        self._room: Room | None = None
        self._makes = False
        self._underway: Underway | None = None
        self._task: asyncio.Task[None] | None = None

    def loading(self, choice: Choice) -> None:
        """Take note that the first model is about to be loaded. Errors: BackendError for what cannot be had here."""
        self._room = Room.of(on_gpu(choice))

    def loaded(self, model: Model) -> None:
        """Take note that it is there, and what it took."""
        if self._room is not None:
            self._room.loaded(model)

    @property
    def names(self) -> list[str]:
        """List the names of the models that there are."""
        return self._folder.names()

    @property
    def underway(self) -> tuple[str, Progress] | None:
        """Return the swap that is under way: the name of its model, and how far it has come."""
        return None if self._underway is None else (self._underway.name, self._progress(self._underway))

    @property
    def makes(self) -> bool:
        """Return whether a thread makes a model ready, which may be in a compiler for minutes."""
        return self._makes

    async def swap(self, name: str, prediction: str = "auto") -> AsyncGenerator[Progress]:
        """Swap to a model of the folder; yields each stage as it is reached, DONE when the old model is gone.

        Whoever closes this before DRAINING cancels the swap. Errors: SwapRefused, while another is under way and where
        the model cannot be served beside the old one; UnknownModel; Cancelled; NotServing.
        """
        old = self._service.ready()
        if self._underway is not None:
            name, progress = self._underway.name, self._progress(self._underway)
            raise SwapRefused(
                f"a swap to {name} is under way, {progress.stage.name.lower()} since it began {progress.seconds:.0f} s "
                "ago; wait for its end"
            )
        underway = self._underway = Underway(name)
        self._task = asyncio.create_task(self._run(underway, prediction, old))
        try:
            async for stage in underway.stages():
                yield Progress(stage, *self._since(underway))
        finally:
            underway.cancel()

    def stop(self) -> None:
        """Cancel the swap that is under way, where its model does not serve yet, and tell who watches it."""
        if self._underway is not None and self._underway.stage < Stage.DRAINING:
            self._underway.cancel()
            self._underway.end(NotServing(f"the server stops, and {self._underway.name} is not served"))

    def close(self) -> None:
        """Watch over no swap any more: both devices have stopped, or the thread that makes one is left to itself."""
        if self._task is not None:
            self._task.cancel()

    def _progress(self, underway: Underway) -> Progress:
        before = self._service.before
        return underway.progress(0 if before is None else before.jobs)

    def _since(self, underway: Underway) -> tuple[float, int]:
        progress = self._progress(underway)
        return progress.seconds, progress.left

    async def _run(self, underway: Underway, prediction: str, old: Device) -> None:
        """Do a swap from its beginning to its end, whoever watches."""
        outcome, device = "failed", None
        error: LatentdError | None = None
        try:
            device = await self._replace(underway, prediction, old)
            outcome = "done"
        except Cancelled as cancelled:
            error, outcome = cancelled, "cancelled"
        except UnknownModel as unknown:
            error, outcome = unknown, "refused"
        except LatentdError as refusal:
            error, outcome = SwapRefused(f"{underway.name} is not served: {refusal}", refusal.code), "refused"
            if underway.cancelled:  # which an export that was ended for that does not know
                error, outcome = underway.cancellation(), "cancelled"
        except Exception:
            log.exception("the swap to %s failed", underway.name)
            error = SwapRefused(f"{underway.name} is not served: {UNEXPECTED}", "INTERNAL")
        finally:
            old.metrics.swap(outcome)
        try:
            if device is not None:
                log.info("%s serves; %s finishes %d requests", device.model.id, old.model.id, old.jobs)
                await self._drain(device, old)
            elif error is not None:
                log.warning("no swap: %s; %s goes on serving", error, old.model.id)
                error.with_traceback(None)  # its frames hold what was half made
                error.__context__ = error.__cause__ = None
            del old, device
            await asyncio.to_thread(_give_back)
        finally:
            self._service.metrics.forget_others()
            self._underway = None
            underway.end(error)

    async def _replace(self, underway: Underway, prediction: str, old: Device) -> Device:
        """Make a device ready, and have it serve in the place of another.

        Errors: LatentdError, and whatever a load fails with; then nothing has changed.
        """
        device = await asyncio.to_thread(self._ready, underway, prediction, old)
        self._service.ready()  # which it may not be any more
        underway.reach(Stage.DRAINING)
        device.floor.follow(old.floor)
        device.start()
        self._service.succeed(device)
        device.metrics.engine(device.model)
        self._serves(device)
        return device

    def _ready(self, underway: Underway, prediction: str, old: Device) -> Device:
        """Make a device ready to take over. Called in a thread. Errors: LatentdError."""
        self._makes = True
        purpose.set(underway)
        try:
            path = self._folder.model(underway.name)
            checkpoint = open_checkpoint(path, prediction)
            if self._room is not None:
                self._room.check(checkpoint)
            device = self._make(path, prediction, underway.reach)
            underway.reach(Stage.MEASURING)
            device.measure(old)
            return device
        finally:
            self._makes = False

    async def _drain(self, device: Device, old: Device) -> None:
        """Wait until the old model has nothing to do any more, and let go of it."""
        await self._service.holds.forsaken(old)
        await asyncio.to_thread(old.stop)
        device.floor.lead()
        self._service.before = None
        await self._gone(old)
        log.info("%s is gone", old.model.id)


def _give_back() -> None:
    memory.give_back()
    gpu.give_back()
