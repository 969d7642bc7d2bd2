"""Keeps the measurements of TensorRT's builder, which take minutes of a CPU for a large network."""

from __future__ import annotations

import json
from typing import Any, Protocol

from engines.cache import devices


class Notes(Protocol):
    """A memory of measurements; `what` was measured and the values are JSON."""

    def recall(self, **what: Any) -> Any:
        """Return the value that was remembered for `what`, None where there is none."""
        ...

    def remember(self, value: Any, **what: Any) -> None:
        """Keep the latest value for `what`."""
        ...


class ProcessNotes:
    """Notes that end with this process."""

    def __init__(self) -> None:
        self._held: dict[str, Any] = {}

    def recall(self, **what: Any) -> Any:
        return self._held.get(json.dumps(what, sort_keys=True))

    def remember(self, value: Any, **what: Any) -> None:
        self._held[json.dumps(what, sort_keys=True)] = value


class DeviceNotes:
    """Notes that later processes on this CPU find in the cache."""

    def recall(self, **what: Any) -> Any:
        return devices.recall(devices.this_cpu(), what)

    def remember(self, value: Any, **what: Any) -> None:
        devices.remember(devices.this_cpu(), what, value)
