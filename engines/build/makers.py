"""The builders there are: by backend, imported only when asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from engines.artifact.opened import Artifact
from engines.build.builder import Builder
from engines.cache import devices
from engines.errors import BackendError


@dataclass(frozen=True)
class Maker:
    """How a builder is made, in this process or, told as JSON, in another."""

    module: str
    kind: str
    library: str  # what it cannot do without
    extra: str  # what installs that
    options: dict[str, Any] = field(default_factory=dict)  # JSON values

    def make(self, artifact: Artifact, target: str | None, precision: str) -> Builder:
        """Errors: BackendError, naming the extra to install, or refusing target or precision."""
        self.check_library()
        kind = getattr(importlib.import_module(self.module), self.kind)
        timing = devices.folder() / "tensorrt.timing"
        return kind(artifact, target, precision, **self.options, notes=Notes(), timing=timing)

    def check_library(self) -> None:
        if importlib.util.find_spec(self.library) is None:
            raise BackendError(
                f"building needs {self.library}, which is not installed: pip install -e '.[{self.extra}]' in a clone"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Notes:
    """What TensorRT's builder measures on this CPU, minutes for a large network, kept between its processes."""

    def recall(self, **what: Any) -> Any:
        return devices.recall(devices.this_cpu(), what)

    def remember(self, value: Any, **what: Any) -> None:
        devices.remember(devices.this_cpu(), what, value)


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


def told(artifact: Artifact, builder: Builder) -> dict[str, Any]:
    """What an engine's manifest says beside its identity; `tools` is a builder's own, where it has it."""
    return {"model": artifact.id, "spec": artifact.spec_digest, "tools": getattr(builder, "tools", dict)()}


def command(artifact: Artifact, identity: dict[str, Any], buckets: Sequence[int] = ()) -> str:
    """The words that build an engine again, from what it depends on; or its like for `buckets` of rows."""
    told = f"make engines MODEL={artifact.folder} BACKEND={identity['backend']}"
    told += f" ARCH={identity['target']} PRECISION={identity['precision']}"
    shapes, factor = identity["shapes"], artifact.spec.vae.factor
    if rows := shapes.get("sample"):
        told += f" ROWS={','.join(str(number) for number in buckets or rows[:1])}"
    if latents := shapes.get("sample") or shapes.get("latents"):
        told += f" SIZES={latents[3] * factor}x{latents[2] * factor}"
    if (context := shapes.get("context")) and (chunks := context[1] // artifact.spec.text.tokens) > 1:
        told += f" CHUNKS={chunks}"
    if identity.get("attention", "native") != "native":
        told += f" ATTENTION={identity['attention']}"
    return told
