"""Counts what a kernel has to move and to calculate, and the time below which it cannot do so."""

from __future__ import annotations

from dataclasses import dataclass

# An H200, derived and not measured: HBM in bytes/s (of 4.8e12 on paper, 90%) and dense half-precision products.
BANDWIDTH = 4.3e12
MATRIX_RATE = 790e12


@dataclass(frozen=True)
class Cost:
    """The work of one call.

    moved: bytes of device memory if every input is read and every output written once; operations: on the matrix
    units, a multiplication and an addition being two.
    """

    moved: int
    operations: int = 0

    def microseconds(self, bandwidth: float = BANDWIDTH, rate: float = MATRIX_RATE) -> float:
        """Return the floor. What fits into a cache and was just written (50 MB of L2 on an H200) can go below it."""
        return 1e6 * max(self.moved / bandwidth, self.operations / rate)
