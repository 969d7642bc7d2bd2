"""The networks in torch on an NVIDIA GPU, with our kernels; seats, steps and pictures stay on the device.

Text encoding, stepping and decoding each have a stream. `exact`: a seat's rows are evaluated by themselves and
nothing is chosen by a stopwatch, so the same request has the same bits in any company and after a restart. `fast`: all
rows share a bucket, and cuDNN measures its algorithms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.artifact import Artifact
from engines.backend import F32, BackendError, Pending, Pixels
from engines.cuda_kernels import Kernels, triton_kernels
from engines.cuda_network import TorchNetwork
from engines.cuda_ops import KernelOps, fold_biases
from engines.cuda_stepper import CudaStepper
from engines.cuda_stream import Fetched, OnDevice, Stream
from model import weights
from model.ops import PLAIN
from model.unet import Unet
from model.vae import VaeDecoder

_DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def available() -> bool:
    """Can this torch use a GPU here?"""
    return torch.cuda.is_available()


class CudaBackend:
    """See engines.backend.Backend. `device` and `kernels` are others than a GPU and Triton's in tests only."""

    name = "torch"

    def __init__(
        self,
        artifact: Artifact,
        precision: str = "auto",
        threads: int | None = None,
        *,
        pixels: str = "fast",
        device: str = "cuda",
        kernels: Kernels | None = None,
    ) -> None:
        if precision not in ("auto", *_DTYPES):
            raise BackendError(f"precision {precision!r} is unknown; torch on a GPU does auto, {', '.join(_DTYPES)}")
        self.precision, self.pixels = "f16" if precision == "auto" else precision, pixels
        self.spec = artifact.spec
        on_gpu = device != "cpu"
        self._device = torch.device(device, torch.cuda.current_device()) if on_gpu else torch.device(device)
        dtype = _DTYPES[self.precision]
        if on_gpu:
            torch.backends.cudnn.benchmark = pixels == "fast"
            torch.backends.cudnn.deterministic = pixels == "exact"
            if dtype == torch.float32:
                torch.backends.cudnn.allow_tf32 = False
        self._kernels = kernels or triton_kernels()
        ops = KernelOps(self._kernels) if kernels or dtype != torch.float32 else PLAIN
        folder, like = artifact.folder, {"device": self._device, "memory_format": torch.channels_last}
        # The text encoder stays in float32, as on a CPU: its 77 tokens cost little, and every row rests on them.
        self._text = weights.load_text(self.spec, folder).to(self._device)
        self._unet: Unet = weights.load_unet(self.spec, folder, dtype, ops).to(**like)
        self._decoder: VaeDecoder = weights.load_vae_decoder(self.spec, folder, dtype, ops).to(**like)
        if ops is not PLAIN:
            fold_biases(self._unet)
            fold_biases(self._decoder)
        if on_gpu:
            torch.cuda.synchronize(self._device)  # the streams below do not wait for the one that loaded
        self._encoding, self._stepping, self._decoding, self._side = (Stream(self._device) for _ in range(4))
        self._networks: dict[int, TorchNetwork] = {}
        self._decoders: dict[tuple[int, ...], _Decoder] = {}
        self._ids, self._contexts, self._encode = self._captured_encoder()

    def encode(self, ids: NDArray[np.int64], skip: int = 0) -> F32:
        with self._encoding.here():
            self._encoding.upload(self._ids, ids[None])
            self._encode()
            fetched = self._encoding.fetch(self._contexts[skip])
        return _floats(fetched)

    def decode(self, latents: F32) -> F32:
        decoder = self._decoder_of(latents.shape)
        with self._decoding.here():
            self._decoding.upload(decoder.latents, latents[None])
            decoder.replay()
            fetched = self._decoding.fetch(decoder.picture[0])
        return _floats(fetched)

    def picture(self, latents: Pending[F32]) -> Pending[Pixels | None]:
        """On a stream of its own, beside the steps; latents of a stepper of ours never leave the device."""
        own = latents if isinstance(latents, OnDevice) else None
        host = np.empty(0, np.float32) if own else latents.get()
        decoder = self._decoder_of(own.tensor.shape if own else host.shape)
        stream = self._decoding
        with stream.here():
            if own:
                stream.after(own.mark, own.tensor)
                decoder.latents[0].copy_(own.tensor)
            else:
                stream.upload(decoder.latents, host[None])
            decoder.replay()
            return _Picture(stream.fetch(decoder.pixels[0], decoder.broken))

    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1) -> CudaDenoiser:
        shape, tokens = self.spec.latent_shape(width, height), chunks * self.spec.text.tokens
        return CudaDenoiser(self._unet, self._stepping, shape, tokens, rows, exact=self.pixels == "exact")

    def stepper(self, width: int, height: int, seats: int, chunks: int = 1, steps: int = 150) -> CudaStepper:
        tokens = chunks * self.spec.text.tokens
        if tokens not in self._networks:
            with self._stepping.here():
                self._networks[tokens] = TorchNetwork(self._unet, tokens)
        return CudaStepper(
            self._networks[tokens],
            self._kernels,
            self.spec.latent_shape(width, height),
            seats,
            steps,
            self._stepping,
            self._side,
            exact=self.pixels == "exact",
        )

    def identity(self) -> dict[str, str]:
        """What else a row's bits depend on."""
        card = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        return {"device": card, "torch": torch.__version__, "pixels": self.pixels}

    def _decoder_of(self, shape: Sequence[int]) -> _Decoder:
        if (key := tuple(shape)) not in self._decoders:
            self._decoders[key] = _Decoder(self._decoder, self._kernels, key, self._decoding)
        return self._decoders[key]

    def _captured_encoder(self) -> tuple[Tensor, Tensor, Callable[[], None]]:
        """Ids [1, tokens], contexts [1 + skips, tokens, width], and what makes these of those."""
        text = self.spec.text
        with self._encoding.here():
            ids = torch.zeros(1, text.tokens, dtype=torch.int64, device=self._device)
            contexts = torch.zeros(1 + text.skips, text.tokens, text.width, device=self._device)

            def run() -> None:
                context, *skipped = self._text(ids)
                contexts[0] = context[0]
                if skipped:
                    contexts[1:] = skipped[0][0]

            return ids, contexts, self._encoding.captured(run)


class _Decoder:
    """One picture of one size at a time, over fixed buffers."""

    def __init__(self, net: VaeDecoder, kernels: Kernels, shape: tuple[int, ...], stream: Stream) -> None:
        dtype, factor = next(net.parameters()).dtype, net.spec.factor
        sides = shape[1] * factor, shape[2] * factor
        with stream.here():
            self.latents = torch.zeros(1, *shape, device=stream.device)
            self.picture = torch.zeros(1, net.spec.image_channels, *sides, device=stream.device)
            self.pixels = torch.zeros(1, *sides, net.spec.image_channels, dtype=torch.uint8, device=stream.device)
            self.broken = torch.zeros(1, dtype=torch.int32, device=stream.device)

            def run() -> None:
                made = net(self.latents.to(dtype).contiguous(memory_format=torch.channels_last))
                pixels, broken = kernels.to_uint8(made)
                self.picture.copy_(made)
                self.pixels.copy_(pixels)
                self.broken.copy_(broken)

            self.replay = stream.captured(run)


class _Picture:
    """Pixels on their way to the host; None if they are not numbers."""

    def __init__(self, fetched: Fetched) -> None:
        self._fetched = fetched

    def ready(self) -> bool:
        return self._fetched.ready()

    def get(self) -> Pixels | None:
        pixels, broken = self._fetched.arrays()
        return None if broken.any() else pixels.astype(np.uint8, copy=False)


class CudaDenoiser:
    """The UNet over host arrays, for `generate` and `make check`; what serves is the stepper."""

    def __init__(
        self, unet: Unet, stream: Stream, latents: tuple[int, int, int], tokens: int, rows: int, *, exact: bool
    ) -> None:
        self._unet, self._stream, self._exact = unet, stream, exact
        self.samples = np.zeros((rows, *latents), np.float32)
        self.timesteps = np.zeros(rows, np.float32)
        self.contexts = np.zeros((rows, tokens, unet.spec.context_width), np.float32)
        self.guidance = np.ones(rows, np.float32)
        self.outputs = np.zeros((rows, *latents), np.float32)

    def run(self, rows: Sequence[int]) -> None:
        """See Denoiser.run. Not exact: all rows are one batch, and the last bits may depend on its size."""
        for batch in [[row] for row in rows] if self._exact else [list(rows)] if rows else []:
            self._run(batch)

    def _run(self, rows: list[int]) -> None:
        dtype, new = self._unet.conv_in.weight.dtype, self._stream.new
        with self._stream.here():
            samples = new(self.samples[rows]).to(dtype).contiguous(memory_format=torch.channels_last)
            inputs = [samples, new(self.timesteps[rows]), new(self.contexts[rows]).to(dtype)]
            if self._unet.spec.guidance_width:
                inputs.append(new(self.guidance[rows]))
            fetched = self._stream.fetch(self._unet(*inputs).float())
        self.outputs[rows] = _floats(fetched)


def _floats(fetched: Fetched) -> F32:
    """A copy: contexts are remembered, and pinned memory is not for keeping."""
    (array,) = fetched.arrays()
    return array.astype(np.float32)
