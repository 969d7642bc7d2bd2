"""Whether two models fit into memory at once: what the served one took, and how much larger another one is."""

from __future__ import annotations

from collections.abc import Callable

from engines.cuda import gpu
from engines.errors import OutOfMemory
from engines.machine import spare_memory
from engines.model import Model
from pipeline.checkpoint.opened import Checkpoint

_SPARE = 1.1  # of the forecast: a load's peak is above what stays


class Room:
    """Forecasts what a model will take from what the first one was measured to take, from before its load to after it.

    Libraries, buffers and engines are in that. A larger model takes its further weights besides: as many bytes as they
    are stored with, or twice as many where a backend computes with float32 copies. A smaller one is charged as much as
    the first. `held` tells the bytes that this process has, `free` those that are left; None: the system does not tell.
    """

    def __init__(self, held: Callable[[], int | None], free: Callable[[], int | None]) -> None:
        self._before, self._held, self._free = held(), held, free
        self._took: int | None = None
        self._weights, self._copies = 0, 1

    @classmethod
    def of(cls, on_gpu: bool) -> Room:
        """Return the one of the memory that models are in: the GPU's, or the machine's."""
        return cls(gpu.held_memory, gpu.free_memory) if on_gpu else cls(spare_memory.anonymous, spare_memory.available)

    def loaded(self, model: Model) -> None:
        """Note that the first model is there; before it was loaded this was made."""
        after = self._held()
        if self._before is not None and after is not None:
            self._took, self._weights = max(0, after - self._before), model.checkpoint.weights.total
            self._copies = 2 if model.backend.precision == "f32" and model.backend.name != "openvino" else 1

    def needed(self, checkpoint: Checkpoint) -> int | None:
        """Forecast the bytes that a model takes; None where none was measured."""
        if self._took is None:
            return None
        return round(_SPARE * (self._took + self._copies * max(0, checkpoint.weights.total - self._weights)))

    def check(self, checkpoint: Checkpoint) -> None:
        """Errors: OutOfMemory where the forecast is more than what is free."""
        needed, free = self.needed(checkpoint), self._free()
        if needed is not None and free is not None and needed > free:
            raise OutOfMemory(
                f"it would take about {needed / 2**30:.2f} GiB beside the model that is served, and "
                f"{free / 2**30:.2f} GiB are free"
            )
