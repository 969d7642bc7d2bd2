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
    """One engine to be built."""

    network: str  # a key of engines.artifact.opened.GRAPHS
    shapes: dict[str, tuple[int, ...]]  # static, by input name


class Builder(Protocol):
    """Engines of one artifact for one target."""

    name: str  # the backend: "openvino", "onnxruntime", "tensorrt_rtx", "tensorrt"
    target: str  # "cpu" or "sm_89"

    def orders(self, rows: Sequence[int], sizes: Sequence[tuple[int, int]], chunks: int = 1) -> list[Order]:
        """The engines that serving pictures of `sizes` (width, height: pixels) in buckets of `rows` rows takes.

        Prompts are `chunks` times the text encoder's length.
        """
        ...

    def identity(self, order: Order) -> dict[str, Any]:
        """All that the engine's bytes depend on, as JSON values; two orders are the same engine where these agree."""
        ...

    def build(self, order: Order, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
        """Write the engine's bytes to the file `out`; return facts (JSON values) for its manifest.

        Errors: BackendError, in one sentence. Called in a process of its own, which the compiler may take down.
        """
        ...
