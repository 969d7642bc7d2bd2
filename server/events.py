"""The events of a job, as plain data: the same for every door."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

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
    score: float | None = None  # how near to the prompt, where that was judged


class Evaluation(NamedTuple):
    """Tells of one evaluation of one picture."""

    ended: float  # monotonic seconds
    picture: int
    step: int  # done by then
    seats: int  # that were evaluated together


@dataclass
class Timings:
    """Holds when a job came from one part of its way to the next, in monotonic seconds; 0 is not yet.

    What follows `evaluated` is of the picture that was finished last: for it everybody waited.
    """

    arrived: float = 0.0
    read: float = 0.0  # the pictures that it came with were read; when it arrived, where there are none
    seated: float = 0.0  # its first picture got a seat
    encoded: float = 0.0  # that picture's prompts were there
    evaluated: float = 0.0  # the last evaluation of all its pictures was over
    decoding: float = 0.0  # the picture's turn at the decoder came
    decoded: float = 0.0
    judged: float | None = None  # all its pictures were; None: they are not
    written: float = 0.0  # the picture's file was there
    delivered: float = 0.0  # the door had its end
    seats: list[int] = field(default_factory=list)  # live seats at each evaluation of each picture
    evaluations: list[Evaluation] | None = None  # the same, with when; None: nobody traces the request

    def __post_init__(self) -> None:
        self.read = self.read or self.arrived

    def parts(self, now: float) -> dict[str, float]:
        """Return the milliseconds of each part, in their order. They add up to the time from arrival to delivery.

        A job that did not come that far has had its last part until `now`. A picture may be decoded before another's
        last evaluation: a part begins where the one before it ended, or has no time.
        """
        judged = self.decoded if self.judged is None else self.judged
        drawn = (self.read, self.seated, self.encoded, self.evaluated)
        ends = (*drawn, self.decoding, self.decoded, judged, self.written, self.delivered)
        parts, begun = {}, self.arrived
        for name, end in zip(PARTS, ends, strict=True):
            end = max(begun, end or (self.delivered or now))
            parts[name] = 1e3 * (end - begun)
            begun = end
        return parts

    @property
    def seats_shared(self) -> float:
        return sum(self.seats) / len(self.seats) if self.seats else 0.0


# Of a job's time.
PARTS = ("read", "queue", "encode", "denoise", "decode_wait", "decode", "judge", "file", "delivery")


@dataclass(frozen=True)
class Done:
    timings: Timings


@dataclass(frozen=True)
class Failed:
    error: LatentdError


Event = Started | Step | Preview | Image | Done | Failed
