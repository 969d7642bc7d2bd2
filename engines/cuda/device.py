"""Texts, seats and pictures on one NVIDIA GPU, whatever computes the networks: torch's modules, or TensorRT's plans.

Text encoding, stepping and decoding each have a stream. `exact`: a seat's rows are evaluated by themselves and
nothing is chosen by a stopwatch, so the same request has the same bits in any company and after a restart. `fast`: all
rows share a bucket.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.backend import Pending
from engines.buffers import text_inputs
from engines.cache import devices
from engines.cuda.denoiser import CudaDenoiser
from engines.cuda.errors import device_errors, with_memory
from engines.cuda.kernels import Kernels
from engines.cuda.network import Network
from engines.cuda.stepper import CudaStepper
from engines.cuda.stream import ALONE, Fetched, OnDevice, Stream
from engines.machine.driver import driver_version
from graphs import ports
from pipeline.arrays import F32, Pixels
from pipeline.conditions.text import Encoded
from pipeline.loras.layers import RANKS
from pipeline.loras.lora import Lora
from pipeline.spec import Spec

log = logging.getLogger("latentd.cuda")


def key_of(device: torch.device) -> str:
    """Name a device for engines/cache/devices.py: what is measured on one driver or torch says nothing of another."""
    if device.type != "cuda":
        return devices.this_cpu()
    return f"{torch.cuda.get_device_name(device)}, driver {driver_version()}, torch {torch.__version__}"


class Networks(Protocol):
    """The networks of one model on one device. Each method, and what it returns, is called within one stream."""

    def text(self, lora: Mapping[str, Tensor] | None = None) -> Callable[[Tensor], Sequence[Tensor]]:
        """Return the text encoder: ids int64 [1, ..] to what ports.outputs lists: context [1, tokens, width], ..

        `lora`: buffers that its A and B are read from (graphs.ports.adapters), of a model that takes LoRAs.
        """
        ...

    def unet(self, width: int, height: int, chunks: int, rank: int = 0) -> Network:
        """Return the UNet for one size, length of prompt and rank of LoRAs. Errors: NoEngine."""
        ...

    def decoder(self, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        """Return the decoder for latents of `shape` [C, h, w]: float32 [1, C, h, w] to a picture [1, 3, H, W]."""
        ...

    def captured(self) -> None:
        """Take note that what the other methods have returned has run, and has been captured."""
        ...


class CudaDevice:
    """See engines.backend.Backend. A subclass sets `name` and `precision`, and makes the `networks`."""

    name: str
    precision: str
    # A lane is captured on the stream that all lanes step on: a replay that another thread launched there meanwhile
    # would become a part of the capture. A stream and a memory pool of its own were never tried.
    makes_beside = False
    lora_dtype = "float32"

    def __init__(self, spec: Spec, networks: Networks, kernels: Kernels, device: torch.device, pixels: str) -> None:
        self.spec, self.pixels = spec, pixels
        self._networks, self._kernels, self._device = networks, kernels, device
        with device_errors():
            if device.type == "cuda":
                with ALONE:
                    torch.cuda.synchronize(device)  # the streams below do not wait for the one that loaded
            self._encoding, self._stepping, self._decoding, self._side = (Stream(device) for _ in range(4))
        self._unets: dict[tuple[int, int, int, int], Network] = {}
        self._encoders: dict[int, _Encoder] = {}  # by the rank of a LoRA
        self._encoding_with: dict[int, Hashable] = {}  # whose matrices the buffers of each hold, by key; None: zeros
        self._decoders: dict[tuple[int, ...], _Decoder] = {}
        mend, begin = "free the card (nvidia-smi shows who holds it) or take a larger one", time.monotonic()
        self._encoders[RANKS[0]] = with_memory(lambda: self._captured_encoder(RANKS[0]), "the text encoder", mend)
        log.info("captured the text encoder in %.1f s", time.monotonic() - begin)
        networks.captured()

    def encode_text(self, ids: NDArray[np.int64], skip: int = 0, lora: Lora | None = None) -> Encoded:
        rank = lora.rank if lora is not None and lora.text is not None else RANKS[0]
        if rank not in self._encoders:
            self._encoders[rank] = self._captured_encoder(rank)
        encoder, inputs = self._encoders[rank], text_inputs(self.spec, ids, lora)
        with self._encoding.here():
            self._encoding.upload(encoder.ids, inputs.pop("ids"))
            key = lora.key if lora is not None and lora.text is not None else None
            if inputs and self._encoding_with.get(rank) != key:
                for name, matrix in inputs.items():
                    self._encoding.upload(encoder.lora[name], matrix)
                self._encoding_with[rank] = key
            encoder.run()
            context = self._encoding.fetch(encoder.contexts[skip]).floats()
            pooled = self._encoding.fetch(encoder.pooled).floats() if self.spec.unet.pooled_width else None
            return Encoded(context, pooled)

    def encode(self, ids: NDArray[np.int64], skip: int = 0) -> F32:
        return self.encode_text(ids, skip).context

    def decode(self, latents: F32) -> F32:
        decoder = self._decoder_of(latents.shape)
        with self._decoding.here():
            self._decoding.upload(decoder.latents, latents[None])
            decoder.replay()
            return self._decoding.fetch(decoder.picture[0]).floats()

    def row_seconds(self, width: int, height: int, chunks: int, rank: int = 0) -> float | None:
        """See Backend.row_seconds; a capture takes no time, a step does."""
        return None

    def picture(self, latents: Pending[F32]) -> Pending[Pixels | None]:
        """See Backend.picture. It has a stream beside the steps'; latents of a CudaStepper never leave the device."""
        ours = latents if isinstance(latents, OnDevice) else None
        host = np.empty(0, np.float32) if ours else latents.get()
        decoder = self._decoder_of(ours.tensor.shape if ours else host.shape)
        stream = self._decoding
        with stream.here():
            if ours:
                stream.after(ours.mark, ours.tensor)
                decoder.latents[0].copy_(ours.tensor)
            else:
                stream.upload(decoder.latents, host[None])
            decoder.replay()
            return _Picture(stream.fetch(decoder.pixels[0], decoder.broken))

    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1, rank: int = 0) -> CudaDenoiser:
        return self._denoiser(width, height, rows, chunks, rank, exact=self.pixels == "exact")

    def together(self, width: int, height: int, rows: int, chunks: int = 1, rank: int = 0) -> CudaDenoiser:
        """See Backend.together: this is how each bucket can be checked."""
        return self._denoiser(width, height, rows, chunks, rank, exact=False)

    def _denoiser(self, width: int, height: int, rows: int, chunks: int, rank: int, *, exact: bool) -> CudaDenoiser:
        network = self._unet(width, height, chunks, rank)
        return CudaDenoiser(network, self._stepping, self.spec, width, height, rows, chunks, rank, exact=exact)

    def stepper(
        self, width: int, height: int, seats: int, chunks: int = 1, steps: int = 150, rank: int = 0
    ) -> CudaStepper:
        def make() -> CudaStepper:
            return CudaStepper(
                self._unet(width, height, chunks, rank),
                self._kernels,
                self.spec.latent_shape(width, height),
                seats,
                steps,
                self._stepping,
                self._side,
                exact=self.pixels == "exact",
            )

        def drop() -> None:
            if lane not in known:
                self._unets.pop(lane, None)
            self._networks.captured()

        lane, known = (width, height, chunks, rank), set(self._unets)
        long = f" and prompts of {chunks} x {self.spec.text.tokens} tokens" if chunks > 1 else ""
        what = f"{seats} seat{'s' if seats > 1 else ''} of {width}x{height}{long}, jobs of up to {steps} steps"
        mend = f"lower --seats (it is {seats}), --max-steps ({steps}) or --sizes, or free the card (nvidia-smi)"
        log.info("capturing the step of %s", what)
        stepper = with_memory(make, what, mend, drop)
        self._networks.captured()
        return stepper

    def identity(self) -> dict[str, Any]:
        """See Backend.identity."""
        card = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        return {"device": card, "torch": torch.__version__, "pixels": self.pixels}

    def identities(self, width: int, height: int) -> dict[str, dict[str, Any]]:
        """See Backend.identities: modules are not engines that a store keeps."""
        return {}

    def device_key(self) -> str:
        """See Backend.device_key."""
        return key_of(self._device)

    def _unet(self, width: int, height: int, chunks: int, rank: int) -> Network:
        if (lane := (width, height, chunks, rank)) not in self._unets:
            with self._stepping.here():
                self._unets[lane] = self._networks.unet(*(lane if rank else lane[:3]))
        return self._unets[lane]

    def _decoder_of(self, shape: Sequence[int]) -> _Decoder:
        if (key := tuple(shape)) not in self._decoders:
            width, height = (side * self.spec.vae.factor for side in (key[2], key[1]))

            def make() -> _Decoder:
                with self._decoding.here():
                    net = self._networks.decoder(key)
                return _Decoder(net, self._kernels, self.spec, key, self._decoding)

            mend = "lower --seats, --max-steps or --sizes, or free the card (nvidia-smi)"
            begin = time.monotonic()
            decoder = with_memory(make, f"decoding {width}x{height}", mend, self._networks.captured)
            self._decoders[key] = decoder
            log.info("captured the decoder of %dx%d in %.1f s", width, height, time.monotonic() - begin)
            self._networks.captured()
        return self._decoders[key]

    def _captured_encoder(self, rank: int) -> _Encoder:
        """Capture the text encoder for LoRAs of this rank; where the model takes none there is one encoder."""
        spec, sides = self.spec, {"rows": 1, "rank": rank}
        port, *adapters = ports.inputs("text_encoder", spec)
        skips, unet = spec.skips, spec.unet
        with self._encoding.here():
            lora = {port.name: torch.zeros(port.sized(sides), device=self._device) for port in adapters}
            net = self._networks.text(lora) if lora else self._networks.text()
            ids = torch.zeros(port.sized(sides), dtype=torch.int64, device=self._device)
            contexts = torch.zeros(1 + skips, spec.text.tokens, unet.context_width, device=self._device)
            pooled = torch.zeros(unet.pooled_width, device=self._device)

            def run() -> None:
                context, *others = net(ids)
                contexts[0] = context[0]
                if skips:
                    contexts[1:] = others[0][0]
                if unet.pooled_width:
                    pooled.copy_(others[-1][0])

            return _Encoder(ids, contexts, pooled, lora, self._encoding.captured(run))


class _Encoder(NamedTuple):
    """Holds the text encoder, captured over fixed buffers."""

    ids: Tensor  # as ports.inputs has them
    contexts: Tensor  # [1 + skips, tokens, width]
    pooled: Tensor  # [width], of SDXL
    lora: dict[str, Tensor]  # A [1, rank, in] and B [1, out, rank] by their inputs' names; none of a plain model
    run: Callable[[], None]  # from these to the contexts


class _Decoder:
    """The decoder of one size: one picture at a time, over fixed buffers."""

    def __init__(
        self, net: Callable[[Tensor], Tensor], kernels: Kernels, spec: Spec, shape: tuple[int, ...], stream: Stream
    ) -> None:
        channels, sides = spec.vae.image_channels, (shape[1] * spec.vae.factor, shape[2] * spec.vae.factor)
        with stream.here():
            self.latents = latents = torch.zeros(1, *shape, device=stream.device)
            self.picture = picture = torch.zeros(1, channels, *sides, device=stream.device)
            self.pixels = pixels = torch.zeros(1, *sides, channels, dtype=torch.uint8, device=stream.device)
            self.broken = broken = torch.zeros(1, dtype=torch.int32, device=stream.device)

            def run() -> None:
                decoded = net(latents)
                bytes_of_it, flags = kernels.to_uint8(decoded)
                picture.copy_(decoded)
                pixels.copy_(bytes_of_it)
                broken.copy_(flags)

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
