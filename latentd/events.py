"""What `stream` yields: the messages of a GenerateEvent, unwrapped, so that `match` and isinstance tell them apart.

Order: Queued, then for each picture Started, Step.., Preview.., Image, and Done at the end. A slow reader gets
only the latest Step and loses Previews, never an Image.
"""

from __future__ import annotations

from typing import TypeAlias

from latentd.picture import Picture, Timings
from latentd.v1.images_pb2 import Done, GenerateEvent, Image, Preview, Queued, Started, Step

__all__ = ["Done", "Event", "Gathering", "Image", "Preview", "Queued", "Started", "Step", "event_of"]

Event: TypeAlias = Queued | Started | Step | Preview | Image | Done


def event_of(message: GenerateEvent) -> Event | None:
    """Return the event inside the message; None for a newer server's kind, which this client does not know."""
    kind = message.WhichOneof("event")
    return getattr(message, kind) if kind else None


class Gathering:
    """Gathers the pictures of one request from its events in any order."""

    def __init__(self) -> None:
        self._images: dict[int, Image] = {}
        self._timings: Timings | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, Image):
            self._images[event.index] = event
        elif isinstance(event, Done):
            self._timings = Timings.of(event.timings)

    def pictures(self) -> list[Picture]:
        """Return the pictures that have arrived, in order of index; without timings unless Done has come."""
        return [Picture.of(self._images[index], self._timings) for index in sorted(self._images)]
