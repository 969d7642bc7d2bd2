"""Into how many parts a product's depth is cut, and with which tiles: a function of rows, columns and depth.

A price of two terms, chosen from arithmetic and not from timings: nothing here ran on a GPU. `candidates` is what a GPU
should time to correct it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

MOST = 32  # parts: the sum reads each
# Multiprocessors of an H100 or H200. Cards with another number are given the same parts.
_PROCESSORS = 132
# Of a microsecond: a multiprocessor's share of 790 TFLOP/s; what the L2 delivers to all of them, 6 TB/s (assumed, not
# measured), which a part's float32 crosses twice.
_FLOPS, _L2 = 790e6 / _PROCESSORS, 6e6


class Tile(NamedTuple):
    """rows x columns of a program, depth of a step, warps, steps under way, and parts of the depth."""

    rows: int
    columns: int
    step: int
    warps: int
    stages: int
    split: int = 1

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.step} {self.warps} warps {self.stages} stages cut {self.split}"

    def programs(self, rows: int, width: int) -> int:
        """Of one part."""
        return -(-rows // self.rows) * -(-width // self.columns)

    def cut(self, depth: int) -> tuple[int, int]:
        """(parts, depth of a part): whole steps, and no part without one."""
        steps = -(-depth // self.step)
        each = -(-steps // min(self.split, steps))
        return -(-steps // each), each * self.step


def price(tile: Tile, rows: int, width: int, depth: int, itemsize: int = 2) -> float:
    """Microseconds, about: as many rounds of programs as the multiprocessors need, one program each at a time, each
    step as slow as its arithmetic or its way from the L2; and all parts written and read."""
    parts, span = tile.cut(depth)
    arithmetic = 2 * tile.rows * tile.columns * tile.step / _FLOPS
    arriving = (tile.rows + tile.columns) * tile.step * itemsize * _PROCESSORS / _L2
    rounds = -(-tile.programs(rows, width) * parts // _PROCESSORS)
    return rounds * span // tile.step * max(arithmetic, arriving) + parts * rows * width * 8 / _L2


@functools.cache
def choose(rows: int, width: int, depth: int, arch: int, itemsize: int = 2) -> Tile:
    """The tile and split of the least price; of equal ones the fewer parts."""
    tiles = [tile._replace(split=split) for tile in _tiles(rows, arch, itemsize) for split in range(1, MOST + 1)]
    return min(tiles, key=lambda tile: (price(tile, rows, width, depth, itemsize), tile.split))


def _tiles(rows: int, arch: int, itemsize: int) -> list[Tile]:
    if itemsize == 4:  # no matrix units: 32 sums a thread, and half the depth for the same shared memory
        return [Tile(64, 64, 32, 4, 3)]
    if arch == 90:  # wgmma of 64 rows a warpgroup; 98, 131 and 147 KB of shared memory
        if rows <= 64:
            return [Tile(64, 128, 64, 4, 4)]
        return [Tile(128, 128, 64, 8, 4), Tile(128, 256, 64, 8, 3)]
    # 36 and 48 KB: as in kernels/geglu.py, two programs of either fit on a multiprocessor of any architecture.
    return [Tile(64, 128, 32, 4, 4)] if rows <= 64 else [Tile(128, 128, 32, 8, 4)]


def candidates(rows: int, width: int, depth: int, arch: int) -> list[Tile]:
    """What a GPU should time, the choice first: each tile at its own cheapest split, the choice's neighbours, and two
    programs a multiprocessor (so that one stores while the other multiplies)."""
    first = choose(rows, width, depth, arch)
    found = [first]
    for tile in _tiles(rows, arch, 2):
        splits = [tile._replace(split=split) for split in range(1, MOST + 1)]
        found.append(min(splits, key=lambda tile: price(tile, rows, width, depth)))
    found += [first._replace(split=split) for split in (first.split // 2, first.split + 1, 2 * first.split)]
    if arch == 90:
        found.append(Tile(64, 128, 64, 4, 4, min(MOST, max(1, 264 // Tile(64, 128, 64, 4, 4).programs(rows, width)))))
    return list(dict.fromkeys(tile for tile in found if 1 <= tile.split <= MOST))
