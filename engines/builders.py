"""The builders there are: by backend, imported only when asked for."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from engines.artifact import Artifact
from engines.backend import BackendError
from engines.builder import Builder


@dataclass(frozen=True)
class Maker:
    """How a builder is made, in this process or, told as JSON, in another."""

    module: str
    kind: str
    library: str  # what it cannot do without
    extra: str  # what installs that
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, artifact: Artifact, target: str, precision: str) -> Builder:
        """Errors: BackendError, naming the extra to install, or refusing target or precision."""
        self.check_library()
        kind = getattr(importlib.import_module(self.module), self.kind)
        return kind(artifact, target, precision, **self.options)

    def check_library(self) -> None:
        if importlib.util.find_spec(self.library) is None:
            raise BackendError(
                f"building needs {self.library}, which is not installed: pip install -e '.[{self.extra}]' in a clone"
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


BUILDERS = {
    "openvino": Maker("engines.openvino_build", "OpenVinoBuilder", "openvino", "cpu"),
    "onnxruntime": Maker("engines.onnxruntime_build", "OnnxRuntimeBuilder", "onnxruntime", "cpu"),
    "tensorrt_rtx": Maker("engines.tensorrt_build", "TensorRtBuilder", "tensorrt_rtx", "rtx", {"rtx": True}),
    "tensorrt": Maker("engines.tensorrt_build", "TensorRtBuilder", "tensorrt", "gpu", {"rtx": False}),
}
ON_CPU = ("openvino", "onnxruntime")


def maker_of(backend: str) -> Maker:
    """`backend`: a key of BUILDERS; "auto" is openvino. Errors: BackendError."""
    name = "openvino" if backend == "auto" else backend
    if name not in BUILDERS:
        raise BackendError(f"backend {name!r} builds no engines; there are: auto, {', '.join(BUILDERS)}")
    return BUILDERS[name]


def target_of(backend: str, arch: str) -> str:
    """What to build for: "cpu", the card that was named, or the one that is here. Errors: BackendError."""
    if backend in ("auto", *ON_CPU):
        if arch not in ("", "cpu"):
            raise BackendError(f"ARCH={arch}: backend {backend} builds for the CPU at hand; leave ARCH away")
        return "cpu"
    if backend == "tensorrt" and arch:
        raise BackendError(f"ARCH={arch}: tensorrt builds on the card itself; leave ARCH away, or take tensorrt_rtx")
    found = arch or card_here()
    if found is None:
        way = "say for which card, such as ARCH=sm_89" if backend == "tensorrt_rtx" else "tensorrt builds where it runs"
        raise BackendError(f"there is no NVIDIA GPU here: {way}")
    return found


def told(artifact: Artifact, builder: Builder) -> dict[str, Any]:
    """What an engine's manifest says beside its identity; `tools` is a builder's own, where it has it."""
    return {"model": artifact.id, "spec": artifact.spec_digest, "tools": getattr(builder, "tools", dict)()}


def command(
    artifact: Artifact, backend: str, target: str, rows: Sequence[int], sizes: Sequence[tuple[int, int]]
) -> str:
    """The words that build engines again."""
    told = f"make engines MODEL={artifact.folder} BACKEND={backend}"
    if backend == "tensorrt_rtx":
        told += f" ARCH={target}"
    if backend not in ON_CPU:
        told += f" ROWS={','.join(map(str, rows))}"
    return told + f" SIZES={','.join(f'{width}x{height}' for width, height in sizes)}"


def card_here() -> str | None:
    """The first NVIDIA GPU's architecture, such as "sm_89"; None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    first = told.stdout.strip().splitlines()[:1]
    digits = first[0].replace(".", "") if first else ""
    return f"sm_{digits}" if told.returncode == 0 and digits.isdigit() else None
