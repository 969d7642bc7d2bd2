"""The events of a job, as plain data: the same for every door."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import LatentdError


@dataclass(frozen=True)
class Started:
    index: int


@dataclass(frozen=True)
class Step:
    index: int
    step: int
    steps: int


@dataclass(frozen=True)
class Preview:
    index: int
    step: int
    jpeg: bytes


@dataclass(frozen=True)
class Image:
    index: int
    data: bytes
    seed: int


@dataclass
class Timings:
    """Says where a job's time went, in milliseconds: of several pictures the longest queue, the sum of the rest."""

    queue_ms: float = 0.0
    encode_ms: float = 0.0
    denoise_ms: float = 0.0
    decode_ms: float = 0.0
    seats: list[int] = field(default_factory=list)  # live seats at each of the job's evaluations

    @property
    def seats_shared(self) -> float:
        return sum(self.seats) / len(self.seats) if self.seats else 0.0


@dataclass(frozen=True)
class Done:
    timings: Timings


@dataclass(frozen=True)
class Failed:
    error: LatentdError


Event = Started | Step | Preview | Image | Done | Failed
