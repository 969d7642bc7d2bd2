"""The pace of this device: how long its steps take. No thread, no clock: times come in as numbers."""

from __future__ import annotations

from server.wish import LaneKey

_WEIGHT = 0.1  # of the latest step in the mean: forecasts follow the machine's load within some ten steps


class Pace:
    """Knows how many seconds a row takes in one evaluation, by lane. On a CPU a row is a call."""

    def __init__(self, row_seconds: dict[LaneKey, float]) -> None:
        """Begin with the `row_seconds` of the lanes that were made at start, one chunk of each size among them."""
        self.row_seconds = row_seconds

    def open(self, lane: LaneKey) -> None:
        """Add another lane of a size: until it steps it has the pace of the same size's shortest prompts."""
        self.row_seconds[lane] = self.row_seconds[lane._replace(chunks=1)]

    def stepped(self, lane: LaneKey, rows: int, seconds: float) -> None:
        self.row_seconds[lane] += _WEIGHT * (seconds / rows - self.row_seconds[lane])

    def full_step(self, seats: int) -> float:
        """Forecast a step with so many guided seats, in the slowest lane; seconds."""
        return 2 * seats * max(self.row_seconds.values())
