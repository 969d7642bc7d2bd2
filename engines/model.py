"""A model, loaded: its spec, its tokenizer, its engines."""

from __future__ import annotations

from dataclasses import dataclass

from engines.artifact import Artifact
from engines.backend import Backend, BackendError
from pipeline.spec import Spec
from pipeline.tokenizer import ClipTokenizer

BACKENDS = ("openvino", "torch")


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

    `backend`: "openvino" (what "auto" means on a CPU) or "torch", the oracle. `precision`: "bf16" where the CPU
    has it ("auto"), or "f32". Errors: BackendError, naming the extra to install, for a backend that is not here.
    """
    name = "openvino" if backend == "auto" else backend
    tokenizer = ClipTokenizer(artifact.folder, artifact.spec.text)
    try:
        if name == "openvino":
            from engines.openvino import OpenVinoBackend

            return Model(artifact, tokenizer, OpenVinoBackend(artifact, precision, threads))
        if name == "torch":
            from engines.torch import TorchBackend

            return Model(artifact, tokenizer, TorchBackend(artifact, precision, threads))
    except ModuleNotFoundError as error:
        extra = {"openvino": "cpu", "torch": "export"}[name]
        raise BackendError(
            f"backend {name} needs {error.name}, which is not installed: pip install 'latentd[{extra}]' "
            f"(from a clone: pip install -e '.[{extra}]')"
        ) from None
    raise BackendError(f"backend {name!r} is unknown; there are: auto, {', '.join(BACKENDS)}")
