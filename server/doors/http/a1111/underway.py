"""Who has what under way at this door: what `progress` tells and `interrupt` ends, a caller's own requests alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from server.events import Event, Image, Preview, Started, Step
from server.job import Job


class Underway:
    """Follows one request, from the first byte of its body on: its job comes when its pictures were read."""

    def __init__(self, id: str) -> None:
        self.interrupted = False
        self.pictures: list[Image] = []
        self._id = id
        self._job: Job | None = None
        self._steps: dict[int, int] = {}  # done, of each picture that has begun
        self._index = 0  # of the picture that was heard of last
        self._preview: bytes | None = None
        self._begun = time.monotonic()

    def accepted(self, job: Job) -> None:
        """Follow its job; who was interrupted before has it cancelled."""
        self._job = job
        if self.interrupted:
            job.cancel()

    def interrupt(self) -> None:
        """End it after the step under way, or as soon as it has a job."""
        self.interrupted = True
        if self._job is not None:
            self._job.cancel()

    def note(self, event: Event) -> None:
        match event:
            case Started(index):
                self._steps.setdefault(index, 0)
            case Step(index, step, _):
                self._steps[index], self._index = step, index
            case Preview(_, _, jpeg):
                self._preview = jpeg
            case Image(index):
                if self._job is not None:
                    self._steps[index] = self._job.wish.table.steps
                self.pictures.append(event)

    def progress(self, jobs: int, with_image: bool) -> dict[str, Any]:
        """Tell of it as A1111 does (modules/api/api.py, progressapi). `jobs`: how many the caller has."""
        wish, step = self._job and self._job.wish, self._steps.get(self._index, 0)
        share = sum(self._steps.values()) / (wish.table.steps * wish.images) if wish else 0.0
        elapsed = time.monotonic() - self._begun
        return {
            "progress": share,
            "eta_relative": elapsed / share - elapsed if share else 0.0,
            "state": _state(jobs, self._id, self.interrupted, self._index, step, wish.table.steps if wish else 0),
            "current_image": self._preview if with_image else None,
            "textinfo": None,
        }


class Registry:
    """Holds the requests of all callers, each caller's in the order in which they came."""

    def __init__(self) -> None:
        self._callers: dict[str, list[Underway]] = {}

    @contextlib.contextmanager
    def entered(self, caller: str, id: str) -> Iterator[Underway]:
        """Hold a caller's request during a block."""
        underway = Underway(id)
        self._callers.setdefault(caller, []).append(underway)
        try:
            yield underway
        finally:
            self._callers[caller].remove(underway)
            if not self._callers[caller]:
                del self._callers[caller]

    def progress(self, caller: str, with_image: bool) -> dict[str, Any]:
        """Tell of the caller's oldest request."""
        if requests := self._callers.get(caller):
            return requests[0].progress(len(requests), with_image)
        state = _state(0, "", False, 0, 0, 0)
        return {"progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": None, "textinfo": None}

    def interrupt(self, caller: str) -> None:
        """End the caller's requests: they are answered with the pictures that are there."""
        for underway in self._callers.get(caller, ()):
            underway.interrupt()


def _state(jobs: int, job: str, interrupted: bool, index: int, step: int, steps: int) -> dict[str, Any]:
    return {
        "skipped": False,
        "interrupted": interrupted,
        "stopping_generation": interrupted,
        "job": job,
        "job_count": jobs,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S") if jobs else "0",
        "job_no": index,
        "sampling_step": step,
        "sampling_steps": steps,
    }


__all__ = ["Registry", "Underway"]
