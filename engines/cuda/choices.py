"""The way that each operation takes on a GPU, where there are several: data, so a measurement changes only this file.

Each table is read by shape; `None` stands for every shape that it does not name. No GPU has measured any of it yet.
The sections of `make gpu-check` that compare are named behind each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Attention = Literal["ours", "cudnn", "flash"]
Convolution = Literal["library", "product"]
Geglu = Literal["apart", "fused"]
_Way = TypeVar("_Way")


@dataclass(frozen=True)
class Choices:
    """A way for each operation that has several: see docs/gpu.md, "A measured choice"."""

    # (width of a head, queries, keys). Ours takes the widths of kernels/attention.py; a library whatever it takes, and
    # what it refuses ends the start. [attention, forms]
    attention: Mapping[tuple[int, int, int] | None, Attention] = field(default_factory=lambda: {None: "ours"})
    # (side of the kernel, channels in, channels out, height, width of what goes in). A product is one of positions, so
    # for 1x1 with stride 1 alone: a library has more and better tiles for these than for convolutions. [budget]
    convolution: Mapping[tuple[int, int, int, int, int] | None, Convolution] = field(
        default_factory=lambda: {None: "product"}
    )
    # (width in, width out) of the projection; `fused` is one kernel of ours, `apart` a library's product and one of
    # ours after it. [kernels, forms]
    geglu: Mapping[tuple[int, int] | None, Geglu] = field(default_factory=lambda: {None: "apart"})
    # Whether a guided picture's two rows are computed once until they differ: a second graph for each even bucket, for
    # 2.6% of the arithmetic (docs/gpu.md). [forms]
    twins: bool = False
    # Algorithms of cuDNN's that are measured for each convolution, in `fast`: torch's own default, set so that
    # start-up stays what docs/gpu.md counts.
    algorithms: int = 10


CHOSEN = Choices()


def way(table: Mapping[Any, _Way], *shape: int) -> _Way:
    """Return the choice of `table` for this shape."""
    return table.get(shape, table[None])
