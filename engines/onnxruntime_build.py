"""ONNX Runtime runs an artifact's graphs as they are: there is nothing to build ahead, and this says so.

Its own serialised graphs would spare it a part of a start's second, and would copy the weights, which today lie once
beside the graph, for each kind of CPU that they are optimised for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engines.artifact import Artifact
from engines.backend import BackendError
from engines.builder import Order


class OnnxRuntimeBuilder:
    name, target = "onnxruntime", "cpu"

    def __init__(self, artifact: Artifact, target: str = "cpu", precision: str = "auto") -> None:
        if target != "cpu":
            raise BackendError(f"target {target!r}: onnxruntime runs on the CPU at hand only; leave ARCH away")
        if precision not in ("auto", "f32"):
            raise BackendError(f"precision {precision!r}: backend onnxruntime computes in f32; use auto or f32")
        self.precision = "f32"

    def orders(self, rows: Sequence[int], sizes: Sequence[tuple[int, int]], chunks: int = 1) -> list[Order]:
        """None."""
        return []

    def identity(self, order: Order) -> dict[str, Any]:
        raise AssertionError("there are no orders")

    def build(self, order: Order, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
        raise AssertionError("there are no orders")
