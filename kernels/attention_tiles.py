"""Tile sizes of the attention kernel, per head dimension, architecture and number of positions: one plain table.

They are chosen from what the compilers report (registers, shared memory, hence how many programs a multiprocessor
holds), not from timings: nothing here ran on a GPU. They are never a function of the number of rows: the order of sums
would depend on a request's company.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Tiles(NamedTuple):
    """rows x keys of scores at a time by `warps` warps, `stages` deep in cp.async; the last s % keys keys are masked
    and go `tail` at a time."""

    rows: int
    keys: int
    warps: int
    stages: int
    tail: int = 16  # 77 text tokens are 64 + 16: 80 columns of products where padding would take 128

    def __str__(self) -> str:
        tail = f" tail {self.tail}" if self.tail != 16 else ""
        return f"{self.rows}x{self.keys} {self.warps} warps {self.stages} stages{tail}"


SHORT = 512  # up to so many positions, 64-row tiles: 128-row ones would leave multiprocessors without a program

# Head dimension: tiles for many positions, for few (<= SHORT), and within the 48 KB of a plugin.
#
# sm_90, wgmma: 64 rows a group of four warps. Two groups share each load of K and V: with 64 rows a program a head of
# 40 would ask the L2 for 4.7 TB/s at 300 TFLOP/s, with 128 for half. With 64 keys they hold up to 113 registers a
# thread, so two programs are resident and one takes exponentials while the other multiplies; with 128 keys (155) one.
# At 80 two groups need 130 registers; one group, 141, lets three programs be resident. At 160 the sum alone is 80.
_HOPPER = {
    32: (Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3), Tiles(128, 64, 8, 3)),
    40: (Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3), Tiles(128, 64, 8, 2)),
    64: (Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 2)),
    80: (Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3), Tiles(64, 32, 4, 2)),
    128: (Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 2), Tiles(64, 32, 4, 2)),
    160: (Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 2), Tiles(64, 16, 4, 2)),
}
# All others, mma.sync: 16 rows a warp, so 4 warps x 64 rows; 128 rows in 4 warps spill, in 8 they gain no registers.
# Everything fits into 48 KB, hence into 99 twice, so one choice serves sm_80 to sm_120 and plugins. At 160 the sum
# and q take 120 registers before anything else: more than 16 keys spill for some strides.
_OTHERS = {
    32: (Tiles(64, 64, 4, 3),) * 3,
    40: (Tiles(64, 64, 4, 3),) * 3,
    64: (Tiles(64, 64, 4, 3),) * 3,
    80: (Tiles(64, 64, 4, 2),) * 3,
    128: (Tiles(64, 32, 4, 2),) * 3,
    160: (Tiles(64, 16, 4, 2),) * 3,
}
# There even 16 keys spill (16 bytes, Triton 3.7.1). 32 rows leave two of four warps to repeat the others' work, 172
# registers; at 160 attention is a hundredth of a step.
_BLACKWELL_CONSUMER = {**_OTHERS, 160: (Tiles(32, 32, 4, 2),) * 3}


def _table(arch: int) -> Mapping[int, tuple[Tiles, ...]]:
    return {90: _HOPPER, 120: _BLACKWELL_CONSUMER, 121: _BLACKWELL_CONSUMER}.get(arch, _OTHERS)


def choose(d: int, arch: int, t: int) -> Tiles:
    """Return the tiles for head dimension `d` and `t` positions on architecture `arch` (90 is sm_90)."""
    many, few, _ = _table(arch)[d]
    return few if t <= SHORT else many


def for_plugin(d: int, arch: int) -> Tiles:
    """Return the tiles within 48 KB of shared memory, at any number of positions."""
    return _table(arch)[d][2]
