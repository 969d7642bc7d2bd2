"""What a phase is given: pictures with captions, each by the place that it has in what the phase reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pipeline.arrays import Pixels


@dataclass(frozen=True, eq=False)
class Sample:
    """Holds a picture, its caption, and of a drawn one what is to be seen on it."""

    pixels: Pixels
    caption: str
    unstyled: str  # the caption without a word about the style
    things: tuple[str, ...] = ()
    style: str = ""
    ground: str = ""


class Pictures(Protocol):
    side: int
    things: tuple[str, ...]  # of drawn pictures; () where nobody knows what is to be seen
    styles: tuple[str, ...]
    count: int | None  # of different pictures to learn from; None: there is no end of them

    @property
    def summary(self) -> str:
        """Return how many there are, in words."""
        ...

    @property
    def digest(self) -> str:
        """Return 16 hex digits that differ where pictures or captions do."""
        ...

    def texts(self) -> list[str]:
        """Return texts with every word that a caption may have; the tokenizer is made of them."""
        ...

    def sample(self, purpose: str, index: int) -> Sample:
        """Return the picture at this place of what `purpose` reads; the same whenever it is asked for."""
        ...

    def held(self, purpose: str, index: int) -> Sample:
        """Return one that training never sees."""
        ...

    def companion(self, purpose: str, index: int) -> Sample:
        """Return the picture whose style that of `sample` shares: another one, where there are such."""
        ...
