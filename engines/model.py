"""A model, loaded: its spec, its tokenizer, its engines, and what it has beside them: styles, a judge."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from engines.backend import Backend
from engines.choice import BACKENDS, CUDA, PLANS, Choice
from engines.clip.judge import Judge
from engines.clip.styles import Styles
from engines.cuda import gpu
from engines.errors import BackendError
from engines.machine import toolchain
from engines.machine.driver import driver_here
from engines.machine.memory import available_memory
from graphs.ports import adapted
from pipeline.checkpoint.adapter import adapter_in, encoder_in, with_adapter
from pipeline.checkpoint.clip import JUDGE, Clip, open_encoder, open_judge
from pipeline.checkpoint.opened import Checkpoint
from pipeline.errors import CheckpointError
from pipeline.extras import install
from pipeline.loras.layers import RANKS
from pipeline.loras.shelf import KEPT, Shelf, check_folder
from pipeline.spec import Spec
from pipeline.tokenizer import AnyTokenizer, tokenizer_of

_LORAS = 8  # of the memory that this process may have one part of so many is for LoRAs

log = logging.getLogger("latentd.model")


@dataclass(frozen=True)
class Beside:
    """Names what a model has beside its checkpoint; None: what the checkpoint's folder brings, if it does."""

    adapter: Path | None = None  # a style adapter's file; `ip_adapter/` of the folder
    encoder: Path | None = None  # the folder of its image encoder; `image_encoder/`, else `judge/`
    judge: Path | None = None  # a CLIPModel's folder; `judge/`
    loras: Path | None = None  # a folder of LoRAs; without it the model takes none


@dataclass(frozen=True)
class Model:
    checkpoint: Checkpoint
    tokenizer: AnyTokenizer
    backend: Backend
    digest: str = ""  # of the weights: Weights.digest
    styles: Styles | None = None  # where it has a style adapter
    judge: Judge | None = None
    loras: Shelf | None = None  # where it takes LoRAs

    @property
    def rank(self) -> int:
        """Return the rank of LoRAs that a request without one is run with; 0 where the model takes none."""
        return RANKS[0] if self.loras is not None else 0

    @property
    def id(self) -> str:
        return self.checkpoint.id

    @property
    def spec(self) -> Spec:
        return self.checkpoint.spec


def load(checkpoint: Checkpoint, choice: Choice = Choice(), beside: Beside = Beside()) -> Model:  # noqa: B008 (frozen)
    """Load a checkpoint on this machine: its weights are checked and hashed while the backend takes them in.

    Errors: BackendError, naming the extra to install, for a backend or a device that is not here; CheckpointError for
    weights that do not fit or are not finite; NoEngine; OutOfMemory.
    """
    cuda = on_gpu(choice)
    if not cuda and choice.device == "auto" and choice.backend in ("auto", "torch") and driver_here():
        log.warning("serving on the CPU, though there is an NVIDIA driver: %s", gpu.why_not())
    checkpoint, encoder = _styled(checkpoint, choice, beside)
    if beside.loras is not None:
        if choice.backend in PLANS:
            raise BackendError(f"loras: backend {choice.backend} takes none yet; torch does")
        check_folder(beside.loras)  # before the minutes of a load
        checkpoint = replace(checkpoint, spec=adapted(checkpoint.spec))
    place = beside.judge or checkpoint.path / JUDGE
    clip = open_judge(place, log.warning) if beside.judge or place.is_dir() else None
    with ThreadPoolExecutor(1, "digest") as pool:
        digest = pool.submit(checkpoint.weights.digest)
        backend = _backend(checkpoint, choice, cuda)
        tokenizer = tokenizer_of(checkpoint.source, checkpoint.spec)
        judge = Judge(clip, backend.name, choice.threads) if clip else None
        model = Model(
            checkpoint,
            tokenizer,
            backend,
            digest.result(),
            Styles(checkpoint, encoder, backend.name, choice.threads, judge) if encoder else None,
            judge,
            _shelf(beside.loras, checkpoint, backend) if beside.loras is not None else None,
        )
    log.info("%s: weights of %d files, digest %s", model.id, len(checkpoint.weights.files), model.digest)
    if model.styles:
        log.info("%s: style adapter %s", model.id, checkpoint.adapter)
    if model.loras:
        log.info("%s: LoRAs of %s", model.id, model.loras.folder)
    if model.judge:
        log.info("%s: judge %s, digest %s", model.id, model.judge.path, model.judge.digest)
    return model


def _shelf(folder: Path, checkpoint: Checkpoint, backend: Backend) -> Shelf:
    most = max(KEPT, (available_memory() or 0) // _LORAS)
    bfloat16 = backend.lora_dtype == "bfloat16"
    return Shelf(folder, checkpoint.spec, checkpoint.id, most, bfloat16=bfloat16)


def _styled(checkpoint: Checkpoint, choice: Choice, beside: Beside) -> tuple[Checkpoint, Clip | None]:
    """Return the checkpoint with its style adapter, and the adapter's encoder, where it has one.

    Errors: CheckpointError, BackendError for one that was named and cannot be had.
    """
    adapter = beside.adapter or (None if checkpoint.adapter else adapter_in(checkpoint.path))
    if adapter is None:
        if beside.encoder is not None:
            raise CheckpointError(f"style encoder {beside.encoder}: there is no style adapter; name one too")
        return checkpoint, None
    if choice.backend in PLANS:
        sentence = f"backend {choice.backend} draws no styles yet, so {adapter} is left out; torch draws them"
        if beside.adapter is not None:
            raise BackendError(sentence)
        log.warning("%s", sentence)
        return checkpoint, None
    styled = with_adapter(checkpoint, adapter)
    if (encoder := beside.encoder or encoder_in(checkpoint.path)) is None:
        raise CheckpointError(
            f"style adapter {adapter}: there is no image encoder; name its folder with --style-encoder"
        )
    return styled, open_encoder(encoder)


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
            f"backend {name} needs {error.name}, which is not installed: {install(*extra.split(','))}"
        ) from None
    except ImportError as error:
        raise BackendError(
            f"backend {name} cannot be loaded ({(str(error).splitlines() or ['?'])[0]}): "
            f"{install(*extra.split(','))} --force-reinstall"
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
                f"backend {backend} needs {module}, which is not installed: {install(*PLANS[backend][2].split(','))}"
            )
    if why_not := gpu.why_not():
        raise BackendError(f"backend {backend} runs its plans on an NVIDIA GPU: {why_not}")
    toolchain.check_toolchain()  # the update and the pixels are kernels of ours, which Triton compiles
