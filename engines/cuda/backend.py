"""Backend torch on an NVIDIA GPU: our modules with our kernels."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from engines.cpu.torch import Moments
from engines.cuda.choices import CHOSEN
from engines.cuda.device import CudaDevice
from engines.cuda.errors import device_errors, with_memory
from engines.cuda.kernels import Kernels, triton_kernels
from engines.cuda.network import TorchNetwork
from engines.cuda.ops import KernelOps, fold_biases, sum_in_float32
from engines.errors import BackendError
from model import weights
from model.adapted import AdaptedOps, pairs_of
from model.ops import PLAIN, Ops
from pipeline.checkpoint.opened import Checkpoint

_DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
_FREE = "free the card (nvidia-smi shows who holds it) or take a larger one"

log = logging.getLogger("latentd.cuda")


def device_named(name: str) -> torch.device:
    """Return the device of a name; "cuda" names the GPU that torch has chosen."""
    return torch.device(name, torch.cuda.current_device()) if name != "cpu" else torch.device(name)


class CudaBackend(CudaDevice):
    """See engines.backend.Backend. Only tests pass a `device` other than a GPU, or `kernels` other than Triton's.

    `pixels` "fast": cuDNN measures its algorithms; "exact": it does not.
    """

    name = "torch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: str = "auto",
        threads: int | None = None,
        *,
        pixels: str = "fast",
        device: str = "cuda",
        kernels: Kernels | None = None,
    ) -> None:
        begin = time.monotonic()
        if precision not in ("auto", *_DTYPES):
            raise BackendError(f"precision {precision!r} is unknown; torch on a GPU does auto, {', '.join(_DTYPES)}")
        self.precision = "f16" if precision == "auto" else precision
        with device_errors():
            dtype, place = _DTYPES[self.precision], device_named(device)
        if place.type == "cuda":
            sum_in_float32()
            torch.backends.cudnn.benchmark = pixels == "fast"
            torch.backends.cudnn.benchmark_limit = CHOSEN.algorithms
            torch.backends.cudnn.deterministic = pixels == "exact"
            if dtype == torch.float32:
                torch.backends.cudnn.allow_tf32 = False
        chosen = kernels or triton_kernels()
        ops = KernelOps(chosen) if kernels or dtype != torch.float32 else PLAIN
        what = f"the weights in {self.precision}"
        networks = with_memory(lambda: _Modules(checkpoint, dtype, ops, place), what, _FREE)
        log.info("weights are on the device after %.1f s", time.monotonic() - begin)
        self.moments = Moments(checkpoint)  # on the host, beside the steps
        super().__init__(checkpoint.spec, networks, chosen, place, pixels)


class _Modules:
    """The networks as torch's modules: see engines.cuda.device.Networks."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, ops: Ops, device: torch.device) -> None:
        spec, stored = checkpoint.spec, checkpoint.weights
        wide = spec.wide_decoder and dtype == torch.float16
        self._dtype, decoding = (torch.float32, PLAIN) if wide else (dtype, ops)  # of the decoder
        like = {"device": device, "memory_format": torch.channels_last}
        # The text encoder stays in float32, as on a CPU: its 77 tokens cost little, and every row rests on them.
        own = ops
        self._text_ops = AdaptedOps(PLAIN) if spec.text.adapted else PLAIN
        ops = AdaptedOps(ops) if spec.unet.adapted else ops
        self._text = weights.load_text(spec, stored, ops=self._text_ops).to(device)
        self._unet = weights.load_unet(spec, stored, dtype, ops).to(**like)
        self._decoder = weights.load_vae_decoder(spec, stored, self._dtype, decoding).to(**like)
        if own is not PLAIN:
            # A LoRA's product is of all that its layer is given, and a folded stream lacks the biases.
            fold_biases(self._unet, residuals=not spec.unet.adapted)
        if decoding is not PLAIN:
            fold_biases(self._decoder)
        self._tokens = spec.text.tokens
        self._networks: dict[tuple[int, int], TorchNetwork] = {}

    def text(self, lora: Mapping[str, Tensor] | None = None) -> Callable[[Tensor], Sequence[Tensor]]:
        """See Networks.text."""
        ops = self._text_ops
        if lora is None or not isinstance(ops, AdaptedOps):
            return self._text

        def adapted(ids: Tensor) -> Sequence[Tensor]:
            with ops.adding(self._text, pairs_of(lora)):
                return self._text(ids)

        return adapted

    def unet(self, width: int, height: int, chunks: int, rank: int = 0) -> TorchNetwork:
        """Return the network for prompts of `chunks` chunks and LoRAs of `rank`; it takes pictures of any size."""
        if (chunks, rank) not in self._networks:
            self._networks[chunks, rank] = TorchNetwork(self._unet, chunks * self._tokens, rank)
        return self._networks[chunks, rank]

    def decoder(self, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        like = {"dtype": self._dtype, "memory_format": torch.channels_last}
        return lambda latents: self._decoder(latents.to(**like))

    def captured(self) -> None:
        """See Networks.captured: modules have nothing to keep."""
