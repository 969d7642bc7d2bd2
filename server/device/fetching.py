"""The LoRAs of pictures that are about to sit down, read beside the device thread.

Each was read when its request came, so that what is wrong with it was told then. But who waits in the queue keeps none
of it in memory, and what is remembered may have been forgotten since, for others' sake. It is read once more then, one
at a time, while others step; who needs nothing read sits down meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pipeline.loras.lora import Lora
from pipeline.loras.shelf import Chosen, Key, Shelf
from server.job import Picture


class Fetching:
    """Fetches LoRAs. Used by the device thread; `ended` is called by another one when it has read one."""

    def __init__(self, shelf: Shelf | None, ended: Callable[[], object]) -> None:
        self._shelf, self._ended = shelf, ended
        self._thread: threading.Thread | None = None
        self._read: Lora | None = None  # by that thread; nobody else may keep it in memory until its picture sits
        self._failed: tuple[Key, BaseException] | None = None
        self._held: Lora | None = None  # of the picture that may sit down next
        self.missed = False  # since `look` somebody could not sit down for want of a LoRA
        self._full = False  # and of those one for want of memory

    @property
    def at_work(self) -> bool:
        """Return whether a LoRA is being read. Called by any thread."""
        return self._thread is not None and self._thread.is_alive()

    def look(self) -> None:
        """Note that those who wait are gone through from the first one."""
        self.missed = self._full = False
        self._held = None

    def has(self, picture: Picture) -> bool:
        """Return whether a picture has its LoRAs. They are fetched otherwise, once they have room.

        Who comes behind one that waits for room has nothing read: else what is smaller would take it again and again.
        """
        chosen = picture.job.wish.loras
        if chosen is None or self._shelf is None or picture.state is not None:
            return True  # none, or what it sat with
        if self._failed is not None and self._failed[0] == chosen.key:
            return True  # to be told
        self._held = self._shelf.living(chosen)
        if self._held is not None:
            return True
        self.missed = True
        if not self.at_work and not self._full:
            self._read = None  # in vain: its picture has gone, or this one comes first
            self._full = not self._shelf.has_room(chosen)
            if not self._full:
                self._begin(chosen)
        return False

    def take(self, picture: Picture) -> Lora | None:
        """Return what a picture sits down with that `has` was true for. Errors: those of Shelf.lora."""
        failed, self._failed = self._failed, None
        lora, self._held = self._held, None
        if picture.job.wish.loras is None:
            return None
        if failed is not None and failed[0] == picture.job.wish.loras.key:
            raise failed[1]
        if lora is self._read:
            self._read = None
        return lora

    def _begin(self, chosen: Chosen) -> None:
        self._thread = threading.Thread(target=self._fetch, args=(chosen,), name="LoRA", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads for this process
            self._thread, self._failed = None, (chosen.key, error)

    def _fetch(self, chosen: Chosen) -> None:
        assert self._shelf is not None
        try:
            self._read = self._shelf.lora(chosen)
        except BaseException as error:  # whatever it is, somebody waits for an answer
            self._failed = chosen.key, error
        finally:
            self._thread = None
            self._ended()
