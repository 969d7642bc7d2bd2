"""Who is behind those who step now, and so has what they save."""

from __future__ import annotations

from typing import NamedTuple


class Behind(NamedTuple):
    """Tells how many pictures have what is saved."""

    each: float = 1.0  # for each that sits
    alike: float = 0.0  # and more where the job that joins takes about as long as the first
    waiting: float = 1.0  # for each that waits for a seat


THOSE_HERE = Behind()  # and nobody else
