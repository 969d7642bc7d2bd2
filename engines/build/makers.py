"""The builders there are, by backend; each is imported only when it is used."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from engines.artifact.opened import Artifact
from engines.build.builder import Builder
from engines.errors import BackendError
from pipeline.extras import install


@dataclass(frozen=True)
class Maker:
    """The recipe of a builder: it makes one in this process, or goes as JSON to another process that makes it."""

    module: str
    kind: str
    library: str  # what it cannot do without
    extra: str  # what installs that
    options: dict[str, Any] = field(default_factory=dict)  # JSON values

    def make(self, artifact: Artifact, target: str | None, precision: str) -> Builder:
        """Make the builder. Errors: BackendError, naming the extra to install, or refusing target or precision."""
        self.check_library()
        kind = getattr(importlib.import_module(self.module), self.kind)
        return kind(artifact, target, precision, **self.options)

    def check_library(self) -> None:
        if importlib.util.find_spec(self.library) is None:
            raise BackendError(
                f"building needs {self.library}, which is not installed: {install(*self.extra.split(','))}"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


GPU_ROWS = (2, 4, 8)  # buckets, unless told otherwise
BUILDERS = {
    "tensorrt_rtx": Maker("engines.tensorrt.build.builder", "TensorRtBuilder", "tensorrt_rtx", "rtx", {"rtx": True}),
    "tensorrt": Maker("engines.tensorrt.build.builder", "TensorRtBuilder", "tensorrt", "gpu", {"rtx": False}),
}


def maker_of(backend: str, attention: str = "native") -> Maker:
    """Return what builds plans for `backend`, a key of BUILDERS, with that `attention`. Errors: BackendError."""
    if backend not in BUILDERS:
        raise BackendError(f"backend {backend!r} builds no plans; there are: {', '.join(BUILDERS)}")
    maker = BUILDERS[backend]
    return maker if attention == "native" else replace(maker, options={**maker.options, "attention": attention})
