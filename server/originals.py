"""Originals: the pictures that requests begin with, read and encoded beside the event loop and beside the steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from engines.model import Model
from pipeline.conditions.original import Encoded, encoded
from server.errors import Busy, NotServing
from server.request import ImageRequest
from server.upload import original_of
from server.wish import Wish

Value = TypeVar("Value")

_AT_ONCE = 2  # each may take 200 MB for a moment: a picture of 16 megapixels, decoded and laid on white
_WAITING = 32  # each holds its message


class Originals:
    """Reads pictures in threads of its own. Used from one event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="originals")
        self._working: set[asyncio.Future[Any]] = set()
        self._dismissed: str | None = None  # why nobody waits any more

    async def of(self, request: ImageRequest, wish: Wish, model: Model) -> Encoded:
        """Decode, fit and encode a request's picture and mask.

        Errors: Busy; InvalidRequest naming the field; those of Backend.moments.
        """
        return await self.apart(_read, request, wish, model)

    async def apart(self, work: Callable[..., Value], *values: object) -> Value:
        """Return what `work` makes of `values`, in a thread of this pool. Errors: Busy; NotServing; those of `work`."""
        if self._dismissed is not None:
            raise NotServing(self._dismissed)
        if (here := len(self._working)) >= _WAITING:
            raise Busy(f"{here} requests wait for their pictures to be read; at most {_WAITING} may", 1.0)
        working = asyncio.get_running_loop().run_in_executor(self._pool, work, *values)
        self._working.add(working)
        try:
            return await working
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._dismissed is None or (task is not None and task.cancelling()):  # by who waits
                raise
            raise NotServing(self._dismissed) from None
        finally:
            self._working.discard(working)

    def dismiss(self, why: str) -> None:
        """Tell all who wait here, and who comes from now on, that this server serves no more: `why`."""
        self._dismissed = why
        for working in self._working:
            working.cancel()

    def close(self) -> None:
        """Read no more pictures; those that are being read are waited for."""
        self._pool.shutdown(cancel_futures=True)


def _read(request: ImageRequest, wish: Wish, model: Model) -> Encoded:
    assert request.init_image is not None
    original = original_of(request.init_image, request.mask, wish.size, wish.fit)
    return encoded(original, model.spec, model.backend.moments)
