"""A builder whose engines take no time, and that fails in the way its precision names."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engines.artifact.opened import Artifact
from engines.build.builder import Order
from engines.build.building import Built, apart_from, build_all
from engines.build.makers import Maker
from engines.cache import disk
from engines.errors import BackendError

MAKER = Maker("tests.support.stub_builder", "StubBuilder", "json", "none")


class StubBuilder:
    name = "stub"

    def __init__(self, artifact: Artifact, target: str = "cpu", precision: str = "good", **_: object) -> None:
        """`precision` names how engines of three rows fail; notes and timing are not needed."""
        self.target = target
        self._artifact, self._precision = artifact, precision

    def orders(self, rows: Sequence[int], sizes: Sequence[tuple[int, int]], chunks: int = 1) -> list[Order]:
        return [Order("unet", {"sample": (number, 4)}) for number in rows]

    def identity(self, order: Order) -> dict[str, Any]:
        shapes = {name: list(shape) for name, shape in order.shapes.items()}
        return {"artifact": self._artifact.digest, "backend": self.name, "target": self.target, "shapes": shapes}

    def build(self, order: Order, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
        """Only engines of three rows fail."""
        say("half done")
        if order.shapes["sample"][0] == 3:
            print("compiler: assertion failed\n", file=sys.stderr, flush=True)
            if self._precision == "abort":
                os.abort()
            if self._precision == "kill":
                os.kill(os.getpid(), 9)
            if self._precision == "exit":
                os._exit(3)
            if self._precision == "refuse":
                raise BackendError("no kernel for 3 rows")
            if self._precision == "full":
                raise disk.DiskError("write", out, OSError(28, "No space left on device"), 12)
            if self._precision == "nothing":
                return {}
        disk.write(out, engine(order))
        return {"rows": order.shapes["sample"][0]}


def engine(order: Order) -> bytes:
    return bytes(range(256)) * order.shapes["sample"][0]


ROWS = (2, 3, 4)


def build(
    artifact: Artifact, how: str = "good", apart: bool = False, rows: tuple[int, ...] = ROWS
) -> tuple[list[Built], list[str]]:
    """The stub's engines, in this process unless told otherwise; what was said."""
    builder, said = StubBuilder(artifact, "cpu", how), []
    own = lambda order, out, new, tick, say: builder.build(order, out, say)  # noqa: E731
    compile = apart_from(artifact, MAKER, "cpu", how) if apart else own
    return build_all(artifact, builder, builder.orders(rows, []), compile, said.append), said
