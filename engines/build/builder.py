"""What turns an artifact into engines before anybody serves them: the protocol of a builder, and one engine's order.

A builder builds one engine into one file. It knows nothing of where engines are kept (engines/cache/store.py), of who
else builds the same one, or of what happens when its compiler dies (engines/build/building.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Order:
    """One engine that is to be built."""

    network: str  # a key of engines.artifact.opened.GRAPHS
    shapes: dict[str, tuple[int, ...]]  # static, by input name


class Builder(Protocol):
    """It builds the engines of one artifact for one target. Only TensorRT has one: other backends build on load."""

    name: str  # the backend: "tensorrt" or "tensorrt_rtx"
    target: str  # the class of GPU, such as "sm_89"

    def orders(self, rows: Sequence[int], sizes: Sequence[tuple[int, int]], chunks: int = 1) -> list[Order]:
        """Return the orders of all engines for pictures of `sizes` (width, height: pixels) in buckets of `rows` rows.

        Prompts are `chunks` times the text encoder's length.
        """
        ...

    def identity(self, order: Order) -> dict[str, Any]:
        """Return all that the engine's bytes depend on, as JSON values: where they agree, two orders are one engine."""
        ...

    def build(self, order: Order, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
        """Write the engine's bytes to the file `out`; return facts (JSON values) for its manifest.

        Errors: BackendError, in one sentence. Called in a process of its own, which the compiler may take down.
        """
        ...
