"""ONNX Runtime on the CPU, float32: the portable backend, and the proof that the graph alone makes the picture."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engines.buffers import CalledRows, text_inputs
from engines.cpu.host import HostBackend, encoded
from engines.errors import BackendError, DeviceError
from engines.graphs import check_fit, graph_of
from engines.machine.cores import available_cores
from graphs import part_of, ports, wire
from pipeline.arrays import F32
from pipeline.checkpoint.clip import Clip
from pipeline.checkpoint.opened import Checkpoint
from pipeline.conditions.text import Encoded
from pipeline.loras.lora import Lora


class OnnxRuntimeBackend(HostBackend):
    """Sessions of one checkpoint's graphs, with the weights as external initializers in memory."""

    name = "onnxruntime"
    makes_beside = True  # a denoiser is arrays over the one session, which any threads may run

    def __init__(self, checkpoint: Checkpoint, precision: str = "auto", threads: int | None = None) -> None:
        if precision not in ("auto", "f32"):
            raise BackendError(f"precision {precision!r}: backend onnxruntime computes in f32; use auto or f32")
        check_fit(checkpoint)
        self.precision = "f32"
        self.spec = checkpoint.spec
        self._checkpoint = checkpoint
        self._threads = threads or available_cores()
        self._encoder = self._session("text_encoder")
        self._unet = self._session("unet")
        self._decoder = self._session("vae_decoder")
        self._vae_encoder: onnxruntime.InferenceSession | None = None
        self._making = threading.Lock()  # of the session above

    def encode_text(self, ids: NDArray[np.int64], skip: int = 0, lora: Lora | None = None) -> Encoded:
        return encoded(self.spec, _run(self._encoder, **text_inputs(self.spec, ids, lora)), skip)

    def decode(self, latents: F32) -> F32:
        return _run(self._decoder, latents=latents[None])[0]

    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1, rank: int = 0) -> CalledRows:
        return CalledRows(lambda row: _run(self._unet, **row)[0], self.spec, width, height, rows, chunks, rank)

    def moments(self, picture: F32) -> F32:
        """See Backend.moments."""
        with self._making:
            if self._vae_encoder is None:
                self._vae_encoder = self._session("vae_encoder")
        return _run(self._vae_encoder, picture=picture[None])[0]

    def _session(self, network: str) -> onnxruntime.InferenceSession:
        return _session(self._checkpoint, network, self._threads)


class OnnxRuntimeTower:
    """See engines.clip.tower: one tower of a CLIP folder, as the sessions above."""

    def __init__(self, clip: Clip, network: str, threads: int) -> None:
        self._clip, self._session = clip, _session(clip, network, threads)
        (port,) = ports.inputs(network, clip.spec)
        self._input = port.name

    def __call__(self, value: NDArray[Any]) -> F32:
        return _run(self._session, **{self._input: value[None]})[0]


def _session(checkpoint: Checkpoint | Clip, network: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Idle threads would spin between calls, on the cores that the event loop needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    graph, part, weights = graph_of(network, checkpoint.spec), part_of(network), checkpoint.weights
    unused = wire.idle(graph)  # which ONNX Runtime has dropped before it looks for values
    shapes = {name: shape for name, shape in wire.weights(graph).items() if name not in unused}
    with weights.letting_go():
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(weights.float32(part, n, s)) for n, s in shapes.items()]
        options.add_external_initializers(list(shapes), values)
        try:
            return onnxruntime.InferenceSession(
                wire.with_initializers(graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # pybind classes without a common base
            raise BackendError(f"onnxruntime cannot load {network} of {checkpoint.path}: {error}") from error


def _run(session: onnxruntime.InferenceSession, **inputs: NDArray[Any]) -> list[F32]:
    """Return the outputs for a batch of one, without the batch. Errors: DeviceError."""
    try:
        return [np.asarray(output)[0] for output in session.run(None, inputs)]
    except Exception as error:
        raise DeviceError(f"onnxruntime failed: {error}") from error
