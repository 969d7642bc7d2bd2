"""The networks in plain torch, float32 on the CPU: slow, and what every other backend is measured against."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from engines.buffers import CalledRows, text_inputs
from engines.cpu.host import HostBackend, encoded
from engines.errors import BackendError
from engines.machine.cores import available_cores
from model import weights
from model.adapted import AdaptedOps, pairs_of
from model.ops import PLAIN, Ops
from model.vae import VaeMoments
from pipeline.arrays import F32
from pipeline.checkpoint.clip import Clip
from pipeline.checkpoint.opened import Checkpoint
from pipeline.conditions.text import Encoded
from pipeline.loras.lora import Lora


class TorchBackend(HostBackend):
    name = "torch"
    makes_beside = True  # a denoiser is arrays over modules that nobody writes to

    def __init__(self, checkpoint: Checkpoint, precision: str = "auto", threads: int | None = None) -> None:
        if precision not in ("auto", "f32"):
            raise BackendError(f"precision {precision!r}: backend torch is the f32 oracle")
        self.precision = "f32"
        self.spec = checkpoint.spec
        torch.set_num_threads(threads or available_cores())
        self._ops = AdaptedOps(PLAIN)
        ops = self._ops if self.spec.unet.adapted else PLAIN
        self._text = weights.load_text(self.spec, checkpoint.weights, ops=ops)
        self._unet = weights.load_unet(self.spec, checkpoint.weights, ops=ops)
        self._decoder = weights.load_vae_decoder(self.spec, checkpoint.weights)
        self.moments = Moments(checkpoint)

    def encode_text(self, ids: NDArray[np.int64], skip: int = 0, lora: Lora | None = None) -> Encoded:
        return encoded(self.spec, _run(self._text, self._ops, text_inputs(self.spec, ids, lora)), skip)

    def decode(self, latents: F32) -> F32:
        return _run(self._decoder, PLAIN, {"latents": latents[None]})[0]

    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1, rank: int = 0) -> CalledRows:
        def call(row: Mapping[str, F32]) -> F32:
            return _run(self._unet, self._ops, row)[0]

        return CalledRows(call, self.spec, width, height, rows, chunks, rank)


class Moments:
    """The VAE's encoder on the host, loaded when it is first called: see Backend.moments."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._encoder: VaeMoments | None = None
        self._loading = threading.Lock()

    def __call__(self, picture: F32) -> F32:
        with self._loading:
            if self._encoder is None:
                self._encoder = weights.load_vae_moments(self._checkpoint.spec, self._checkpoint.weights)
        return _run(self._encoder, PLAIN, {"picture": picture[None]})[0]


class TorchTower:
    """See engines.clip.tower. torch has one number of threads for a whole process, which is left as it is."""

    def __init__(self, clip: Clip, network: str, threads: int) -> None:
        load = {"text_encoder": weights.load_text, "vision_tower": weights.load_vision}[network]
        self._net: torch.nn.Module = load(clip.spec, clip.weights)

    def __call__(self, value: NDArray[np.generic]) -> F32:
        return _run(self._net, PLAIN, {"value": value[None]})[0]


def _run(net: torch.nn.Module, ops: Ops, inputs: Mapping[str, NDArray[np.generic]]) -> list[F32]:
    """Return the network's outputs for a batch of one, without the batch. Of LoRAs the pairs are given to `ops`."""
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        pairs = pairs_of(tensors)
        others = [tensor for name, tensor in tensors.items() if "/" not in name]
        with ops.adding(net, pairs) if isinstance(ops, AdaptedOps) else contextlib.nullcontext():
            outputs = net(*others)
    return [tensor[0].numpy() for tensor in (outputs if isinstance(outputs, tuple) else (outputs,))]
