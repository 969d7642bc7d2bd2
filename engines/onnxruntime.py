"""ONNX Runtime on the CPU, float32: the portable backend, and the proof that the graph alone makes the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engines.artifact import Artifact
from engines.backend import F32, BackendError, DeviceError
from engines.cores import available_cores
from engines.host import HostBackend


class OnnxRuntimeBackend(HostBackend):
    """Sessions of one artifact's graphs, as they are: nothing is compiled or cached."""

    name = "onnxruntime"
    makes_beside = True  # a denoiser is arrays over the one session, which any threads may run

    def __init__(self, artifact: Artifact, precision: str = "auto", threads: int | None = None) -> None:
        if precision not in ("auto", "f32"):
            raise BackendError(f"precision {precision!r}: backend onnxruntime computes in f32; use auto or f32")
        self.precision = "f32"
        self.spec = artifact.spec
        self._artifact = artifact
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads or available_cores()
        self._options.log_severity_level = 3
        # Idle threads would spin between calls, on the cores that the event loop needs.
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._encoder = self._session("text_encoder")
        self._unet = self._session("unet")
        self._decoder = self._session("vae_decoder")

    def encode(self, ids: NDArray[np.int64], skip: int = 0) -> F32:
        context, *skipped = _run(self._encoder, ids=ids[None])
        return skipped[0][skip - 1] if skip else context

    def decode(self, latents: F32) -> F32:
        return _run(self._decoder, latents=latents[None])[0]

    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1) -> OnnxRuntimeDenoiser:
        shape = self.spec.latent_shape(width, height)
        return OnnxRuntimeDenoiser(self._unet, shape, chunks * self.spec.text.tokens, rows)

    def _session(self, graph: str) -> onnxruntime.InferenceSession:
        path = self._artifact.graph(graph)
        try:
            return onnxruntime.InferenceSession(str(path), self._options, providers=["CPUExecutionProvider"])
        except Exception as error:  # pybind classes without a common base
            raise BackendError(f"onnxruntime cannot load {path}: {error}") from error


class OnnxRuntimeDenoiser:
    """A row is a call, so that its bits do not depend on its company."""

    def __init__(
        self, unet: onnxruntime.InferenceSession, latents: tuple[int, int, int], tokens: int, rows: int
    ) -> None:
        self._unet = unet
        self._inputs = [port.name for port in unet.get_inputs()]  # an LCM's has one more: the guidance
        width = unet.get_inputs()[self._inputs.index("context")].shape[-1]
        self.samples = np.zeros((rows, *latents), np.float32)
        self.timesteps = np.zeros(rows, np.float32)
        self.contexts = np.zeros((rows, tokens, width), np.float32)
        self.guidance = np.ones(rows, np.float32)
        self.outputs = np.zeros((rows, *latents), np.float32)

    def run(self, rows: Sequence[int]) -> None:
        buffers = {
            "sample": self.samples,
            "timestep": self.timesteps,
            "context": self.contexts,
            "guidance": self.guidance,
        }
        for row in rows:
            inputs = {name: buffers[name][row : row + 1] for name in self._inputs}
            self.outputs[row] = _run(self._unet, **inputs)[0]


def _run(session: onnxruntime.InferenceSession, **inputs: NDArray[Any]) -> list[F32]:
    """The outputs for a batch of one, without the batch. Errors: DeviceError."""
    try:
        return [np.asarray(output)[0] for output in session.run(None, inputs)]
    except Exception as error:
        raise DeviceError(f"onnxruntime failed: {error}") from error
