"""Divides a picture among programs for group norm: by its size, channels and groups, never by the number of pictures.

The sizes are chosen from what the compilers report, not from timings: nothing here ran on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

from kernels.launch import power_of_two

_HELD = 32768  # elements of a program that holds its groups: 64 registers a thread at the most
_TILE = 4096  # elements of a tile of the first kernel: with 256 threads two loads of 16 bytes in flight a thread
# With four, 96 to 168 registers a thread (and on sm_86 and 89 a spill, under Triton 3.6); with eight 62 to 96, so that
# 16 to 24 warps of a multiprocessor wait for memory instead of 12 to 16.
PARTS_WARPS = 8
_PART = 8192  # elements of a part, at least
_PARTS = 128  # at the most: the second kernel reads them all
CHANNELS_APPLIED = 64  # of a program of the second kernel: divides every width of SD 1.5, 2.1 and their decoders


class Held(NamedTuple):
    channels: int
    warps: int
    constants: dict[str, int]


class Parts(NamedTuple):
    channels: int
    parts: int
    span: int  # positions of a part
    applied: int  # positions of a program of the second kernel
    constants: dict[str, int]
    apply_constants: dict[str, int]


def plan_of(positions: int, width: int, groups: int) -> Held | Parts:
    """Divide a picture among programs by its size, channels and groups, by nothing else."""
    group, power = width // groups, power_of_two
    # 16 bytes of half precision is the least that keeps wide loads, 64 bytes of a position what a program should read.
    channels = _fewest(group, groups, multiple=8, least=32)
    constants = {"CHANNELS": channels, "BLOCK": max(16, power(channels)), "GROUPS": power(channels // group)}
    held = max(16, power(positions))
    if (size := held * constants["BLOCK"]) <= _HELD:
        return Held(channels, max(4, size // 2048), constants | {"POSITIONS": held})
    channels = _fewest(group, groups, multiple=16, least=CHANNELS_APPLIED)
    constants = {"CHANNELS": channels, "BLOCK": max(16, power(channels)), "GROUPS": power(channels // group)}
    tile = max(1, _TILE // constants["BLOCK"])
    tiles = power(max(1, -(-_PART // (tile * channels)), -(-positions // (tile * _PARTS))))
    parts = -(-positions // (tile * tiles))
    of = CHANNELS_APPLIED
    touched = power(of // group if of % group == 0 else (of + group - 2) // group + 1)
    # The parts are read once by every program: keep that below an eighth of what it normalises.
    again = power(max(1, power(parts) * touched // 256))
    tall = _TILE // of
    applying = {"BLOCK": of, "GROUPS": touched, "PARTS": power(parts), "TILE": tall, "TILES": again}
    return Parts(channels, parts, tile * tiles, tall * again, constants | {"TILE": tile, "TILES": tiles}, applying)


def needs_64_bits(positions: int, width: int, plan: Parts) -> bool:
    """Return whether an offset within a picture can reach 2^31, also one past its end that a mask hides.

    Such an offset must not wrap. A program holds `span` or `applied` positions, and prepares a tile beyond them.
    """
    return (positions + 2 * max(plan.span, plan.applied)) * width >= 2**31


def _fewest(group: int, groups: int, *, multiple: int, least: int) -> int:
    """Return the fewest channels of whole groups that divide all of them, are at least `least` and a multiple."""
    for count in range(1, groups):
        if groups % count == 0 and count * group % multiple == 0 and count * group >= least:
            return count * group
    return groups * group
