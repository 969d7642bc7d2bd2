"""Who is behind those who step now, and so has what they save."""

from __future__ import annotations

from typing import NamedTuple


class Behind(NamedTuple):
    """Tells how many pictures that are: so many for each that is here, and more where all are alike."""

    each: float = 1.0
    alike: float = 0.0


THOSE_HERE = Behind()  # and nobody else
