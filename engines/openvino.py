"""OpenVINO on the CPU: static one-row engines, rows as concurrent calls on a fixed number of streams.

On a CPU a batch gains nothing at real sizes, and each compiled bucket costs another copy of the weights. So there
is one engine of one row, and each row of a denoiser is an inference request bound to its slice of the fixed
buffers: nothing is copied, and a row's bits cannot depend on its company. They do depend on the number of
streams, which is therefore chosen once a model and machine, by measurement, and kept with the cached engines.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from engines import cache
from engines.artifact import Artifact
from engines.backend import F32, BackendError, DeviceError
from engines.cores import available_cores
from engines.host import HostBackend


class OpenVinoBackend(HostBackend):
    """The engines of one artifact. `precision` "auto" is bf16 where the CPU multiplies it natively, else f32."""

    name = "openvino"

    def __init__(self, artifact: Artifact, precision: str = "auto", threads: int | None = None) -> None:
        self.spec = artifact.spec
        self._artifact = artifact
        self._core = ov.Core()
        bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision not in ("auto", "bf16", "f32"):
            raise BackendError(f"precision {precision!r} is unknown; openvino does auto, bf16 and f32")
        if precision == "bf16" and not bf16:
            raise BackendError("precision bf16: this CPU has no bf16 instructions; use f32 or auto")
        self.precision = ("bf16" if bf16 else "f32") if precision == "auto" else precision
        self._threads = threads or available_cores()
        self._device = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        self._compiled: dict[tuple[Any, ...], ov.CompiledModel] = {}
        self._streams: dict[tuple[int, int], int] = {}
        self._decoders: dict[tuple[int, ...], ov.InferRequest] = {}
        self._encoder = self._request("text_encoder", {"ids": [1, self.spec.text.tokens]}, "f32")

    def encode(self, ids: NDArray[np.int64], skip: int = 0) -> F32:
        self._infer(self._encoder, ids[None])
        if skip:
            return self._encoder.get_output_tensor(1).data[0, skip - 1].copy()
        return self._encoder.get_output_tensor(0).data[0].copy()

    def decode(self, latents: F32) -> F32:
        if latents.shape not in self._decoders:
            shapes = {"latents": [1, *latents.shape]}
            self._decoders[latents.shape] = self._request("vae_decoder", shapes, self.precision)
        decoder = self._decoders[latents.shape]
        self._infer(decoder, latents[None])
        return decoder.get_output_tensor(0).data[0].copy()

    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1) -> OpenVinoDenoiser:
        size = width, height
        if size not in self._streams:
            self._streams[size] = self._choose_streams(width, height)
        return self._bind(width, height, rows, self._streams[size], chunks)

    def _bind(self, width: int, height: int, rows: int, streams: int, chunks: int = 1) -> OpenVinoDenoiser:
        shapes = self._unet_shapes(width, height, chunks)
        return OpenVinoDenoiser(self._engine("unet", shapes, self.precision, streams), rows)

    def _unet_shapes(self, width: int, height: int, chunks: int = 1) -> dict[str, list[int]]:
        latents, text = self.spec.latent_shape(width, height), self.spec.text
        shapes = {"sample": [1, *latents], "timestep": [1], "context": [1, chunks * text.tokens, text.width]}
        return shapes | ({"guidance": [1]} if self.spec.unet.guidance_width else {})

    def _choose_streams(self, width: int, height: int) -> int:
        """One stream has the lowest latency of a row, several share the cores better; what wins is the machine's.

        A guided request alone (two rows) and four of them together weigh equally.
        """
        name = cache.key(what="streams", **self.identity(), size=[width, height])
        if known := cache.load(name):
            return int(json.loads(known))
        denoisers = {}
        for streams in sorted({1, min(2, self._threads), min(4, self._threads)}):
            denoisers[streams] = denoiser = self._bind(width, height, 8, streams)
            denoiser.samples[:], denoiser.contexts[:], denoiser.timesteps[:] = 0.1, 0.1, 500
            denoiser.run([0])
        cost = _costs(denoisers)
        chosen = min(cost, key=lambda streams: cost[streams])
        shapes = json.dumps(self._unet_shapes(width, height))
        for loser in cost.keys() - {chosen}:  # each holds its own copy of the weights
            del self._compiled["unet", self.precision, loser, shapes]
        cache.store(name, json.dumps(chosen).encode())
        return chosen

    def _request(self, graph: str, shapes: dict[str, list[int]], precision: str) -> ov.InferRequest:
        return self._engine(graph, shapes, precision, streams=1).create_infer_request()

    def _engine(self, graph: str, shapes: dict[str, list[int]], precision: str, streams: int) -> ov.CompiledModel:
        """Compiled for these static shapes: from memory, from the cache, or now."""
        own = graph, precision, streams, json.dumps(shapes)
        if own not in self._compiled:
            config = {
                "INFERENCE_PRECISION_HINT": precision,
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": self._threads,
                # Fixed cores lose to the operating system wherever anything else runs, our own event loop included.
                "ENABLE_CPU_PINNING": False,
            }
            name = cache.key(what=graph, config=config, shapes=shapes, **self.identity())
            self._compiled[own] = self._load(name, config) or self._compile(name, graph, shapes, config)
        return self._compiled[own]

    def _load(self, name: str, config: dict[str, Any]) -> ov.CompiledModel | None:
        blob = cache.load(name)
        if blob is None:
            return None
        try:
            return self._core.import_model(io.BytesIO(blob), "CPU", config)
        except RuntimeError:
            return None  # another build of the same version: compile again

    def _compile(self, name: str, graph: str, shapes: dict[str, list[int]], config: dict[str, Any]) -> ov.CompiledModel:
        path: Path = self._artifact.graph(graph)
        try:
            model = self._core.read_model(path)
            model.reshape(shapes)
            compiled = self._core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            raise BackendError(f"openvino cannot compile {path} for {shapes}: {error}") from error
        cache.store(name, compiled.export_model().getvalue())
        return compiled

    def identity(self) -> dict[str, Any]:
        """What else an engine's bits depend on."""
        return {
            "artifact": self._artifact.digest,
            "backend": ov.get_version(),
            "device": self._device,
            "precision": self.precision,
            "threads": self._threads,
        }

    @staticmethod
    def _infer(request: ov.InferRequest, value: NDArray[Any]) -> None:
        try:
            request.set_input_tensor(ov.Tensor(np.ascontiguousarray(value)))
            request.infer()
        except RuntimeError as error:
            raise DeviceError(f"openvino failed: {error}") from error


class OpenVinoDenoiser:
    """Fixed buffers; row r is one inference request bound to their r-th slices."""

    def __init__(self, engine: ov.CompiledModel, rows: int) -> None:
        def buffer(port: ov.ConstOutput) -> F32:
            return np.zeros((rows, *list(port.shape)[1:]), np.float32)

        self.samples, self.timesteps = buffer(engine.input("sample")), buffer(engine.input("timestep"))
        self.contexts, self.outputs = buffer(engine.input("context")), buffer(engine.output(0))
        self.guidance = np.ones(rows, np.float32)
        self._inputs = {"sample": self.samples, "timestep": self.timesteps, "context": self.contexts}
        if any("guidance" in port.names for port in engine.inputs):
            self._inputs["guidance"] = self.guidance
        self._requests = [self._bound(engine, slice(row, row + 1)) for row in range(rows)]

    def _bound(self, engine: ov.CompiledModel, own: slice) -> ov.InferRequest:
        request = engine.create_infer_request()
        for name, buffer in self._inputs.items():
            request.set_tensor(name, ov.Tensor(buffer[own], shared_memory=True))
        request.set_output_tensor(ov.Tensor(self.outputs[own], shared_memory=True))
        return request

    def run(self, rows: Sequence[int]) -> None:
        """See Denoiser.run. All are started before the first is awaited: the streams share them out."""
        try:
            for row in rows:
                self._requests[row].start_async()
            for row in rows:
                self._requests[row].wait()
        except RuntimeError as error:
            raise DeviceError(f"openvino failed: {error}") from error


def _costs(denoisers: dict[int, OpenVinoDenoiser]) -> dict[int, float]:
    """For each number of streams the best time of two rows times the best of eight, in seconds squared.

    In turn, a few seconds' worth and at least twice: a machine that is busy for a while slows all of them alike. One
    after the other, a busy moment once chose one stream, for good, where two are half as fast again.
    """
    best = {(streams, rows): float("inf") for streams in denoisers for rows in (2, 8)}
    begin = time.perf_counter()
    for turn in range(40):
        for streams, rows in best:
            start = time.perf_counter()
            denoisers[streams].run(range(rows))
            best[streams, rows] = min(best[streams, rows], time.perf_counter() - start)
        if turn and time.perf_counter() - begin > 2.0:
            break
    return {streams: best[streams, 2] * best[streams, 8] for streams in denoisers}
