"""OpenVINO on the CPU: networks compiled from memory at every start, rows as concurrent calls.

On a CPU a batch gains nothing at real sizes, so an engine has one row, and each row of a denoiser is an inference
request bound to its slice of the fixed buffers: nothing is copied, and a row's bits cannot depend on its company.

A compiled engine packs a copy of its weights. A large network therefore has one engine for every size and length of
prompt, 2% slower than an engine of one size and with bits that do not depend on which sizes came before. A small one
has an engine a size, because there a millisecond is 10% of a step.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

import graphs
from engines.backend import Stepper
from engines.buffers import Buffers, text_inputs
from engines.cpu.bound import bound, taking_bfloat16
from engines.cpu.core import core, has_bf16
from engines.cpu.host import HostBackend, encoded
from engines.cpu.requests import bind, infer, infer_zeros, shared
from engines.errors import BackendError, DeviceError
from engines.graphs import check_fit
from engines.machine.cores import available_cores
from graphs import ports
from pipeline.arrays import F32
from pipeline.checkpoint.opened import Checkpoint
from pipeline.conditions.text import Encoded
from pipeline.errors import CheckpointError
from pipeline.loras.layers import RANKS
from pipeline.loras.lora import Lora
from pipeline.spec import Spec

# Bytes of a network's weights as they are stored; the demo model's have 5 to 14 MB, SD 1.5's UNet 1.7 GB.
_SMALL = 32 << 20

Shape = tuple[int, ...]  # -1 where an engine takes any


class OpenVinoBackend(HostBackend):
    """The networks of one checkpoint. `precision` "auto" is bf16 where the CPU multiplies it natively, else f32."""

    name = "openvino"
    # A Core compiles for any thread, without Python's lock, and requests of other engines run meanwhile.
    makes_beside = True

    def __init__(self, checkpoint: Checkpoint, precision: str = "auto", threads: int | None = None) -> None:
        check_fit(checkpoint)
        self.spec = checkpoint.spec
        self._checkpoint = checkpoint
        bf16 = has_bf16()
        if precision not in ("auto", "bf16", "f32"):
            raise BackendError(f"precision {precision!r} is unknown; openvino does auto, bf16 and f32")
        if precision == "bf16" and not bf16:
            raise BackendError("precision bf16: this CPU has no bf16 instructions; use f32 or auto")
        self.precision = ("bf16" if bf16 else "f32") if precision == "auto" else precision
        self.lora_dtype = "bfloat16" if self.precision == "bf16" else "float32"
        self._threads = threads or available_cores()
        any_size = {"rows": 1, "h": -1, "w": -1, "height": -1, "width": -1, "tokens": -1, "rank": -1}
        sized = ("unet", "vae_decoder", "vae_encoder", *(("text_encoder",) if self.spec.text.adapted else ()))
        self._any_size = {
            network: ports.shapes(network, self.spec, any_size)
            for network in sized
            if checkpoint.weights.bytes(graphs.part_of(network)) > _SMALL
        }
        self._engines: dict[tuple[str, tuple[Shape, ...]], ov.CompiledModel] = {}
        self._ready: set[tuple[str, tuple[Shape, ...]]] = set()  # shapes that an engine has been run with
        self._row_seconds: dict[tuple[int, int, int, int], float] = {}  # of that run, by size, chunks and rank
        self._decoders: dict[Shape, ov.InferRequest] = {}
        self._compiling: dict[tuple[str, tuple[Shape, ...]], threading.Lock] = {}
        self._encoders: dict[int, ov.InferRequest] = {}  # by the rank of a LoRA
        self._encoder(RANKS[0])
        for network, shapes in self._any_size.items():
            if network != "vae_encoder":  # compiled for the first picture that somebody begins with
                self._engine(network, shapes)

    def encode_text(self, ids: NDArray[np.int64], skip: int = 0, lora: Lora | None = None) -> Encoded:
        adds = lora is not None and lora.text is not None
        rank = lora.rank if lora is not None and adds else RANKS[0]
        encoder = self._encoder(rank)
        if adds:
            bind(encoder, text_inputs(self.spec, ids, lora))
        try:
            infer(encoder, ids=ids[None])
        finally:
            if adds:  # what is bound stays in memory
                bind(encoder, text_inputs(self.spec, ids, None, rank))
        count = len(ports.outputs("text_encoder", self.spec))
        return encoded(self.spec, [encoder.get_output_tensor(i).data[0] for i in range(count)], skip)

    def decode(self, latents: F32) -> F32:
        shapes = {"latents": (1, *latents.shape)}
        with self._first_run("vae_decoder", shapes):
            if latents.shape not in self._decoders:
                self._decoders[latents.shape] = self._engine("vae_decoder", shapes).create_infer_request()
            decoder = self._decoders[latents.shape]
            infer(decoder, latents=latents[None])
        return decoder.get_output_tensor(0).data[0].copy()

    def moments(self, picture: F32) -> F32:
        """See Backend.moments. Its engine stays: a start compiles it no sooner, and pictures come in few sizes."""
        shapes = {"picture": (1, *picture.shape)}
        with self._first_run("vae_encoder", shapes):
            request = self._engine("vae_encoder", shapes).create_infer_request()
            infer(request, picture=picture[None])
        return request.get_output_tensor(0).data[0].copy()

    def denoiser(self, width: int, height: int, rows: int, chunks: int = 1, rank: int = 0) -> OpenVinoDenoiser:
        shapes = ports.shapes("unet", self.spec, ports.sides(self.spec, width, height, 1, chunks, rank))
        with self._first_run("unet", shapes):
            denoiser = OpenVinoDenoiser(self._engine("unet", shapes), self.spec, width, height, rows, chunks, rank)
            if "unet" in self._any_size and (width, height, chunks, rank) not in self._row_seconds:
                start = time.monotonic()
                denoiser.run([0])
                self._row_seconds[width, height, chunks, rank] = time.monotonic() - start
        return denoiser

    def stepper(self, width: int, height: int, seats: int, chunks: int = 1, steps: int = 150, rank: int = 0) -> Stepper:
        """See Backend.stepper. The size's decoder is compiled beside the UNet: 0.1 of the demo model's 0.5 s."""
        with ThreadPoolExecutor(1, "decoder") as pool:
            decoder = pool.submit(self._engine, "vae_decoder", {"latents": (1, *self.spec.latent_shape(width, height))})
            stepper = super().stepper(width, height, seats, chunks, steps, rank)
            decoder.result()
        return stepper

    def row_seconds(self, width: int, height: int, chunks: int, rank: int = 0) -> float | None:
        """See Backend.row_seconds: a large network has run at this size once before its stepper is there."""
        return self._row_seconds.get((width, height, chunks, rank))

    def identity(self) -> dict[str, Any]:
        """See Backend.identity."""
        return {
            "version": ov.get_version(),
            "device": core().get_property("CPU", "FULL_DEVICE_NAME"),
            "threads": self._threads,
        }

    def _encoder(self, rank: int) -> ov.InferRequest:
        """Return the text encoder for LoRAs of this rank; where the model takes none there is one encoder."""
        if rank not in self._encoders:
            shapes = ports.shapes("text_encoder", self.spec, {"rows": 1, "rank": rank})
            with self._first_run("text_encoder", shapes):
                self._encoders[rank] = self._engine("text_encoder", shapes).create_infer_request()
            bind(self._encoders[rank], text_inputs(self.spec, np.zeros(shapes["ids"][1:], np.int64), None, rank))
        return self._encoders[rank]

    def _engine(self, network: str, shapes: dict[str, Shape]) -> ov.CompiledModel:
        """Return the engine that takes `shapes`, compiled now where there is none."""
        shapes = self._any_size.get(network, shapes)
        key = network, tuple(shapes.values())
        with self._compiling.setdefault(key, threading.Lock()):  # setdefault is atomic
            if key not in self._engines:
                self._engines[key] = self._compile(network, shapes)
            return self._engines[key]

    def _compile(self, network: str, shapes: dict[str, Shape]) -> ov.CompiledModel:
        weights = self._checkpoint.weights
        try:
            with weights.letting_go() if weights.bytes(graphs.part_of(network)) > _SMALL else contextlib.nullcontext():
                model = bound(core(), self._checkpoint, network)
                # Inputs that no node takes are dropped when a graph is read: see graphs.adapted.
                taken = {parameter.get_friendly_name() for parameter in model.get_parameters()}
                shapes = {name: shape for name, shape in shapes.items() if name in taken}
                model.reshape({name: list(shape) for name, shape in shapes.items()})
                if network == "unet" and self.lora_dtype == "bfloat16":
                    model = taking_bfloat16(model, self.spec)
                engine = core().compile_model(model, "CPU", self._config(network))
                if network in self._any_size:
                    # It packs its weights when it first runs, at whatever size. Not at the smallest one, where the
                    # deepest level has a single position: packed for that, larger pictures came out wrong altogether
                    # (openvino 2026.4.1). At twice its sides all are right, the smallest too.
                    side = 2 * self.spec.size_multiple
                    side = side if network == "vae_encoder" else side // self.spec.vae.factor
                    small = {name: [side if n < 0 else n for n in shape] for name, shape in shapes.items()}
                    infer_zeros(engine, small)
                return engine
        except RuntimeError as error:
            raise BackendError(f"openvino cannot compile {network} of {self._checkpoint.path}: {error}") from error

    @contextlib.contextmanager
    def _first_run(self, network: str, shapes: dict[str, Shape]) -> Iterator[None]:
        """Run with `shapes` for the first time: an engine of any size reads its weights from the file once more then.

        Errors: BackendError where somebody has written to the file meanwhile.
        """
        key = network, tuple(shapes.values())
        if key in self._ready or network not in self._any_size:
            yield
            return
        try:
            self._checkpoint.weights.check_unchanged()
        except CheckpointError as error:
            raise BackendError(str(error)) from None
        with self._checkpoint.weights.letting_go():
            yield
        self._ready.add(key)

    def _config(self, network: str) -> dict[str, Any]:
        # The text encoder runs once a prompt, and its error reaches every step: always f32.
        precision = "f32" if network == "text_encoder" else self.precision
        # Two streams halve the time of a small step, and cost a large one its latency: SD 1.5 takes 2.11 s a row on one
        # stream of 2 threads, 4.24 s on two, and two rows take 4.2 s on either. The number changes the bits, so it
        # follows from the weights' size and not from a stopwatch.
        streams = min(2, self._threads) if network == "unet" and "unet" not in self._any_size else 1
        return {
            "INFERENCE_PRECISION_HINT": precision,
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self._threads,
            # Fixed cores lose to the operating system wherever anything else runs, our own event loop included.
            "ENABLE_CPU_PINNING": False,
        }


class OpenVinoDenoiser(Buffers):
    """See engines.backend.Denoiser. Row r is one inference request bound to the r-th slices of the buffers."""

    def __init__(self, engine: ov.CompiledModel, spec: Spec, *laid: int) -> None:
        """Bind the buffers to `engine`, which takes one row of them; it may serve other buffers, too."""
        if any(port.element_type == ov.Type.bf16 for port in engine.inputs):
            self.lora_type = np.uint16
        super().__init__(spec, *laid)
        # By number: setting the demo model's 168 takes 0.4 ms so, by name 1.8.
        self._adapters = [(i, port.any_name) for i, port in enumerate(engine.inputs) if port.any_name in self._no_lora]
        self._requests = [self._bound(engine, row) for row in range(len(self.samples))]

    def _bound(self, engine: ov.CompiledModel, row: int) -> ov.InferRequest:
        request = engine.create_infer_request()
        for name, buffer in self.row(row).items():
            request.set_tensor(name, shared(buffer))
        request.set_output_tensor(ov.Tensor(self.outputs[row : row + 1], shared_memory=True))
        return request

    def put_lora(self, row: int, lora: Lora | None) -> None:
        """See Denoiser.put_lora. The LoRA's own arrays are bound: nothing is copied."""
        before = self._loras[row]
        super().put_lora(row, lora)
        request, now = self._requests[row], self._loras[row]
        for number, name in self._adapters:
            if before[name] is not now[name]:
                request.set_input_tensor(number, shared(now[name]))

    def run(self, rows: Sequence[int]) -> None:
        """See Denoiser.run. All rows are started before the first is awaited: the streams share them out."""
        try:
            for row in rows:
                self._requests[row].start_async()
            for row in rows:
                self._requests[row].wait()
        except RuntimeError as error:
            raise DeviceError(f"openvino failed: {error}") from error
