"""A model, loaded: its spec, its tokenizer, its engines."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from engines.backend import Backend
from engines.choice import BACKENDS, CUDA, PLANS, Choice
from engines.cuda import gpu
from engines.errors import BackendError
from engines.machine import toolchain
from engines.machine.driver import driver_here
from pipeline.checkpoint.opened import Checkpoint
from pipeline.spec import Spec
from pipeline.tokenizer import ClipTokenizer

log = logging.getLogger("latentd.model")


@dataclass(frozen=True)
class Model:
    checkpoint: Checkpoint
    tokenizer: ClipTokenizer
    backend: Backend
    digest: str = ""  # of the weights: Weights.digest

    @property
    def id(self) -> str:
        return self.checkpoint.id

    @property
    def spec(self) -> Spec:
        return self.checkpoint.spec


def load(checkpoint: Checkpoint, choice: Choice = Choice()) -> Model:  # noqa: B008 (it is frozen)
    """Load a checkpoint on this machine: its weights are checked and hashed while the backend takes them in.

    Errors: BackendError, naming the extra to install, for a backend or a device that is not here; CheckpointError for
    weights that do not fit or are not finite; NoEngine; OutOfMemory.
    """
    cuda = on_gpu(choice)
    if not cuda and choice.device == "auto" and choice.backend in ("auto", "torch") and driver_here():
        log.warning("serving on the CPU, though there is an NVIDIA driver: %s", gpu.why_not())
    with ThreadPoolExecutor(1, "digest") as pool:
        digest = pool.submit(checkpoint.weights.digest)
        backend = _backend(checkpoint, choice, cuda)
        model = Model(checkpoint, ClipTokenizer(checkpoint.source, checkpoint.spec.text), backend, digest.result())
    log.info("%s: weights of %d files, digest %s", model.id, len(checkpoint.weights.files), model.digest)
    return model


def _backend(checkpoint: Checkpoint, choice: Choice, cuda: bool) -> Backend:
    name = ("torch" if cuda else "openvino") if choice.backend == "auto" else choice.backend
    module, kind, extra = CUDA if cuda and name == "torch" else BACKENDS[name]
    options = {"pixels": "fast" if choice.pixels == "auto" else choice.pixels} if cuda else {}
    if name in PLANS:
        options["attention"] = choice.attention
    try:
        return getattr(importlib.import_module(module), kind)(checkpoint, choice.precision, choice.threads, **options)
    except ModuleNotFoundError as error:
        raise BackendError(
            f"backend {name} needs {error.name}, which is not installed: pip install -e '.[{extra}]' in a clone"
        ) from None
    except ImportError as error:
        raise BackendError(
            f"backend {name} cannot be loaded ({(str(error).splitlines() or ['?'])[0]}): "
            f"pip install --force-reinstall -e '.[{extra}]' in a clone"
        ) from None


def on_gpu(choice: Choice) -> bool:
    """Return whether `load` takes a GPU for this choice: known in seconds, before the minutes of a load.

    Errors: BackendError for what cannot be had here, with what mends it.
    """
    if choice.backend in PLANS:
        _check_plans(choice.backend)
        return True
    if choice.device == "cpu" or choice.backend not in ("auto", "torch"):
        return False
    why_not = gpu.why_not()
    if choice.device == "cuda" and why_not:
        raise BackendError(f"device cuda: {why_not}")
    if not why_not:
        gpu.check_kernels()
    return not why_not


def _check_plans(backend: str) -> None:
    """Check that plans of `backend` can run here. Errors: BackendError, naming what is missing."""
    for module in ("torch", "triton", "onnx", backend):
        if importlib.util.find_spec(module) is None:
            raise BackendError(
                f"backend {backend} needs {module}, which is not installed: "
                f"pip install -e '.[{PLANS[backend][2]}]' in a clone"
            )
    if why_not := gpu.why_not():
        raise BackendError(f"backend {backend} runs its plans on an NVIDIA GPU: {why_not}")
    toolchain.check_toolchain()  # the update and the pixels are kernels of ours, which Triton compiles
