"""A model, loaded: its spec, its tokenizer, its engines."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from engines.backend import Backend
from engines.cuda import gpu
from engines.errors import BackendError
from engines.machine import toolchain
from engines.machine.driver import driver_here
from pipeline.checkpoint.opened import Checkpoint
from pipeline.spec import Spec
from pipeline.tokenizer import ClipTokenizer

# Name: the module and class, imported only when asked for, and the extra that installs what it needs.
BACKENDS = {
    "openvino": ("engines.cpu.openvino", "OpenVinoBackend", "cpu"),
    "onnxruntime": ("engines.cpu.onnxruntime", "OnnxRuntimeBackend", "cpu"),
    "torch": ("engines.cpu.torch", "TorchBackend", "export"),
}
CUDA = ("engines.cuda.backend", "CudaBackend", "kernels")  # backend torch on a GPU
# Plans, which only an NVIDIA GPU runs.
PLANS = {
    "tensorrt": ("engines.tensorrt.serve.backend", "TensorRtBackend", "gpu"),
    "tensorrt_rtx": ("engines.tensorrt.serve.backend", "TensorRtRtxBackend", "export,kernels,rtx"),
}
BACKENDS |= PLANS
DEVICES = ("auto", "cpu", "cuda")
PIXELS = ("auto", "exact", "fast")
ATTENTIONS = ("native", "triton")


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


def load(
    checkpoint: Checkpoint,
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    device: str = "auto",
    pixels: str = "auto",
    attention: str = "native",
) -> Model:
    """Load a checkpoint on this machine: its weights are checked and hashed while the backend takes them in.

    `backend`: a key of BACKENDS; "auto" is torch on a GPU, openvino on a CPU. `precision`: "f16" (a GPU's "auto"),
    "bf16" where the backend and the device have it (a CPU's "auto"), or "f32". `device`: "cpu", "cuda", or "auto": a
    GPU if there is one that the backend can use. `pixels`: "exact", or "fast" (a GPU's "auto"; no difference on a CPU).
    `attention`: which of tensorrt's plans, those with TensorRT's own or with our kernels inside.
    Errors: BackendError, naming the extra to install, for a backend or a device that is not here; CheckpointError for
    weights that do not fit or are not finite; NoEngine; OutOfMemory.
    """
    cuda = on_gpu(backend, device, pixels, attention)
    if not cuda and device == "auto" and backend in ("auto", "torch") and driver_here():
        log.warning("serving on the CPU, though there is an NVIDIA driver: %s", gpu.why_not())
    name = ("torch" if cuda else "openvino") if backend == "auto" else backend
    module, kind, extra = CUDA if cuda and name == "torch" else BACKENDS[name]
    options = {"pixels": "fast" if pixels == "auto" else pixels} if cuda else {}
    if name in PLANS:
        options["attention"] = attention
    with ThreadPoolExecutor(1, "digest") as pool:
        digest = pool.submit(checkpoint.weights.digest)
        loaded = _backend(name, module, kind, extra, checkpoint, precision, threads, options)
        model = Model(checkpoint, ClipTokenizer(checkpoint.source, checkpoint.spec.text), loaded, digest.result())
    log.info("%s: weights of %d files, digest %s", model.id, len(checkpoint.weights.files), model.digest)
    return model


def _backend(
    name: str,
    module: str,
    kind: str,
    extra: str,
    checkpoint: Checkpoint,
    precision: str,
    threads: int | None,
    options: dict[str, str],
) -> Backend:
    try:
        return getattr(importlib.import_module(module), kind)(checkpoint, precision, threads, **options)
    except ModuleNotFoundError as error:
        raise BackendError(
            f"backend {name} needs {error.name}, which is not installed: pip install -e '.[{extra}]' in a clone"
        ) from None
    except ImportError as error:
        raise BackendError(
            f"backend {name} cannot be loaded ({(str(error).splitlines() or ['?'])[0]}): "
            f"pip install --force-reinstall -e '.[{extra}]' in a clone"
        ) from None


def on_gpu(backend: str, device: str, pixels: str = "auto", attention: str = "native") -> bool:
    """Will `load` take a GPU for these? Tells what can be told in seconds, before an export or a load takes minutes.

    Errors: BackendError for what cannot be had here, with what mends it.
    """
    for what, value, known in (
        ("backend", backend, ("auto", *BACKENDS)),
        ("device", device, DEVICES),
        ("pixels", pixels, PIXELS),
        ("attention", attention, ATTENTIONS),
    ):
        if value not in known:
            raise BackendError(f"{what} {value!r} is unknown; there are: {', '.join(known)}")
    if attention != "native" and backend != "tensorrt":
        raise BackendError(f"attention {attention}: only plans of backend tensorrt can have it, not {backend}")
    if backend in PLANS:
        return _plans_run(backend, device)
    cuda = _on_cuda(backend, device)
    if cuda:
        gpu.check_kernels()
    return cuda


def _on_cuda(backend: str, device: str) -> bool:
    if backend not in ("auto", "torch"):
        if device == "cuda":
            raise BackendError(f"device cuda: backend {backend} computes on the CPU; torch has the GPU")
        return False
    if device == "cpu":
        return False
    why_not = gpu.why_not()
    if device == "cuda" and why_not:
        raise BackendError(f"device cuda: {why_not}")
    return not why_not


def _plans_run(backend: str, device: str) -> bool:
    """True. Errors: BackendError where they cannot."""
    if device == "cpu":
        raise BackendError(f"device cpu: backend {backend} runs its plans on an NVIDIA GPU only")
    for module in ("torch", "triton", "onnx", backend):
        if importlib.util.find_spec(module) is None:
            raise BackendError(
                f"backend {backend} needs {module}, which is not installed: "
                f"pip install -e '.[{PLANS[backend][2]}]' in a clone"
            )
    if why_not := gpu.why_not():
        raise BackendError(f"backend {backend} runs its plans on an NVIDIA GPU: {why_not}")
    toolchain.check()  # of the update and of the pixels, which are kernels of ours
    return True
