"""A model, loaded: its spec, its tokenizer, its engines."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from engines.artifact import Artifact
from engines.backend import Backend, BackendError
from pipeline.spec import Spec
from pipeline.tokenizer import ClipTokenizer

# Name: the module and class, imported only when asked for, and the extra that installs what it needs.
BACKENDS = {
    "openvino": ("engines.openvino", "OpenVinoBackend", "cpu"),
    "onnxruntime": ("engines.onnxruntime", "OnnxRuntimeBackend", "cpu"),
    "torch": ("engines.torch", "TorchBackend", "export"),
}


@dataclass(frozen=True)
class Model:
    artifact: Artifact
    tokenizer: ClipTokenizer
    backend: Backend

    @property
    def id(self) -> str:
        return self.artifact.id

    @property
    def spec(self) -> Spec:
        return self.artifact.spec


def load(artifact: Artifact, backend: str = "auto", precision: str = "auto", threads: int | None = None) -> Model:
    """Engines of `artifact` on this machine, from the cache or compiled.

    `backend`: a key of BACKENDS; "auto" is openvino. `precision`: "bf16" where the backend and the CPU have it
    ("auto"), or "f32". Errors: BackendError, naming the extra to install, for a backend that is not here.
    """
    name = "openvino" if backend == "auto" else backend
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r} is unknown; there are: auto, {', '.join(BACKENDS)}")
    module, kind, extra = BACKENDS[name]
    try:
        made: Backend = getattr(importlib.import_module(module), kind)(artifact, precision, threads)
    except ModuleNotFoundError as error:
        raise BackendError(
            f"backend {name} needs {error.name}, which is not installed: pip install -e '.[{extra}]' in a clone"
        ) from None
    return Model(artifact, ClipTokenizer(artifact.folder, artifact.spec.text), made)
