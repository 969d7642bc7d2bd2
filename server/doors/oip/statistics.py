"""What became of the requests of one name, as the protocol's statistics have it."""

from __future__ import annotations

import time

from server.doors.oip.inference import inference_pb2 as pb
from server.doors.oip.models import VERSION
from server.events import Timings

# The parts of a job's time that make up each of the protocol's.
_PARTS = {
    "queue": ("queue",),
    "compute_input": ("encode",),
    "compute_infer": ("denoise", "decode_wait", "decode"),
    "compute_output": ("file", "delivery"),
}


class Statistics:
    """Counts requests since the start. A request counts in all parts or, where it failed, in none."""

    def __init__(self) -> None:
        self._pictures = self._last = 0
        self._times = pb.InferStatistics()

    def succeeded(self, seconds: float, pictures: int, timings: Timings) -> None:
        """Count a request that has ended well. `timings`: those of the job that ended last."""
        self._pictures += pictures
        self._last = time.time_ns() // 10**6
        _add(self._times.success, 1e3 * seconds)
        times = timings.parts(time.monotonic())
        for name, parts in _PARTS.items():
            _add(getattr(self._times, name), sum(times[part] for part in parts))

    def failed(self, seconds: float) -> None:
        _add(self._times.fail, 1e3 * seconds)

    def message(self, name: str) -> pb.ModelStatistics:
        return pb.ModelStatistics(
            name=name,
            version=VERSION,
            last_inference=self._last,
            inference_count=self._pictures,
            execution_count=self._times.success.count,
            inference_stats=self._times,
        )


def _add(duration: pb.StatisticDuration, milliseconds: float) -> None:
    duration.count += 1
    duration.ns += round(1e6 * milliseconds)
