"""How long things take on this device, as its steps have shown. No thread, no clock: times come in as numbers."""

from __future__ import annotations

from server.wish import LaneKey

_WEIGHT = 0.1  # of the latest step: forecasts follow the machine's load within some ten


class Pace:
    """Seconds a row takes in one evaluation, by lane. On a CPU a row is a call."""

    def __init__(self, row_seconds: dict[LaneKey, float]) -> None:
        """`row_seconds` of the lanes that were made at start, one chunk of each size among them."""
        self.row_seconds = row_seconds

    def open(self, lane: LaneKey) -> None:
        """Another lane of a size has that size's shortest prompts' pace until it steps."""
        self.row_seconds[lane] = self.row_seconds[lane._replace(chunks=1)]

    def stepped(self, lane: LaneKey, rows: int, seconds: float) -> None:
        self.row_seconds[lane] += _WEIGHT * (seconds / rows - self.row_seconds[lane])

    def full_step(self, seats: int) -> float:
        """Forecast of a step with so many guided seats, in the slowest lane; seconds."""
        return 2 * seats * max(self.row_seconds.values())
