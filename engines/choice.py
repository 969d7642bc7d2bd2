"""What a user chooses about running a model: the backend, and the options that it is given."""

from __future__ import annotations

from dataclasses import dataclass

from engines.errors import BackendError

# Name: the module and class, imported only when chosen, and the extra that installs what it needs.
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


@dataclass(frozen=True)
class Choice:
    """A choice of how to run a model. Errors: BackendError for a word that is unknown, or that the backend lacks."""

    backend: str = "auto"  # a key of BACKENDS; "auto" is torch on a GPU, openvino on a CPU
    precision: str = "auto"  # "f16" (a GPU's "auto"), "bf16" where it can be had (a CPU's "auto"), or "f32"
    threads: int | None = None  # of a CPU; None: one a core
    device: str = "auto"  # "cpu", "cuda", or "auto": a GPU if there is one that the backend can use
    pixels: str = "auto"  # "exact", or "fast" (a GPU's "auto"); no difference on a CPU
    attention: str = "native"  # which of tensorrt's plans: with TensorRT's own, or with our kernels inside

    def __post_init__(self) -> None:
        for what, value, known in (
            ("backend", self.backend, ("auto", *BACKENDS)),
            ("device", self.device, DEVICES),
            ("pixels", self.pixels, PIXELS),
            ("attention", self.attention, ATTENTIONS),
        ):
            if value not in known:
                raise BackendError(f"{what} {value!r} is unknown; there are: {', '.join(known)}")
        if self.attention != "native" and self.backend != "tensorrt":
            raise BackendError(
                f"attention {self.attention}: only plans of backend tensorrt can have it, not {self.backend}"
            )
        if self.backend in PLANS and self.device == "cpu":
            raise BackendError(f"device cpu: backend {self.backend} runs its plans on an NVIDIA GPU only")
        if self.backend not in ("auto", "torch", *PLANS) and self.device == "cuda":
            raise BackendError(f"device cuda: backend {self.backend} computes on the CPU; torch has the GPU")
