"""The map that previews need, fitted for whoever asks first: nobody who does not ask pays for it."""

from __future__ import annotations

import asyncio
import logging

from engines.preview import Preview
from pipeline.errors import LatentdError

log = logging.getLogger("latentd.request")


class Fitting:
    """Fits a model's map off the event loop, once. Where that fails the next one who asks has it tried again."""

    def __init__(self) -> None:
        self._preview: Preview | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self, preview: Preview) -> asyncio.Task[None] | None:
        """Begin to fit a map; returns what to wait for, None where it is known."""
        if preview.known is not None:
            return None
        if self._preview is not preview or self._task is None or self._task.done():
            self._preview, self._task = preview, asyncio.create_task(_fit(preview))
        return self._task

    def forget(self) -> None:
        """Hold no model's map any more; one that is being fitted is so to its end."""
        self._preview = self._task = None


async def _fit(preview: Preview) -> None:
    try:
        await asyncio.to_thread(preview.map)
    except Exception as error:
        known = isinstance(error, LatentdError)
        log.error("previews cannot be made%s", f": {error}" if known else "", exc_info=not known)
