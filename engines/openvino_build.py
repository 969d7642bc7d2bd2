"""OpenVINO's engines: one blob a network and shape, of one row, for the CPU at hand.

A blob imports with any number of streams, and then computes the same bits as one that was compiled with that number
(tests/engines/test_openvino.py); so it is compiled once, and how many streams run it is the device's to choose.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from engines import disk
from engines.artifact import Artifact
from engines.backend import BackendError
from engines.builder import Order
from engines.cores import available_cores
from engines.store import Engine


class OpenVinoBuilder:
    """Compiles for this CPU. `precision` "auto" is bf16 where the CPU multiplies it natively, else f32."""

    name, target = "openvino", "cpu"

    def __init__(
        self, artifact: Artifact, target: str = "cpu", precision: str = "auto", threads: int | None = None
    ) -> None:
        if target != "cpu":
            raise BackendError(f"target {target!r}: openvino builds for the CPU at hand only; leave ARCH away")
        self._artifact = artifact
        self._core = ov.Core()
        bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision not in ("auto", "bf16", "f32"):
            raise BackendError(f"precision {precision!r} is unknown; openvino does auto, bf16 and f32")
        if precision == "bf16" and not bf16:
            raise BackendError("precision bf16: this CPU has no bf16 instructions; use f32 or auto")
        self.precision = ("bf16" if bf16 else "f32") if precision == "auto" else precision
        self.threads = threads or available_cores()
        self.device: str = self._core.get_property("CPU", "FULL_DEVICE_NAME")

    def orders(self, rows: Sequence[int], sizes: Sequence[tuple[int, int]], chunks: int = 1) -> list[Order]:
        """See Builder.orders. A row is a call, so that engines of one row serve any number of `rows`."""
        found = [self.text_encoder()]
        for width, height in sizes:
            found += [
                self.unet(width, height, chunks),
                self.vae_decoder(*self._artifact.spec.latent_shape(width, height)),
            ]
        return found

    def text_encoder(self) -> Order:
        return Order("text_encoder", {"ids": (1, self._artifact.spec.text.tokens)})

    def unet(self, width: int, height: int, chunks: int = 1) -> Order:
        spec = self._artifact.spec
        context = 1, chunks * spec.text.tokens, spec.text.width
        shapes = {"sample": (1, *spec.latent_shape(width, height)), "timestep": (1,), "context": context}
        return Order("unet", shapes | ({"guidance": (1,)} if spec.unet.guidance_width else {}))

    def vae_decoder(self, channels: int, height: int, width: int) -> Order:
        """`height` and `width` of the latents."""
        return Order("vae_decoder", {"latents": (1, channels, height, width)})

    def identity(self, order: Order) -> dict[str, Any]:
        shapes = {name: list(shape) for name, shape in order.shapes.items()}
        return {"network": order.network, "shapes": shapes, **self.common(), "precision": self._precision(order)}

    def common(self) -> dict[str, Any]:
        """What every engine's bytes depend on, whatever its network and shapes."""
        return {
            "artifact": self._artifact.digest,
            "backend": self.name,
            "version": ov.get_version(),
            "target": self.target,
            "device": self.device,
            "precision": self.precision,
            "threads": self.threads,
        }

    def tools(self) -> dict[str, str]:
        return {name: importlib.metadata.version(name) for name in ("openvino", "numpy")}

    def build(self, order: Order, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
        return self.write(self.compiled(order, streams=1), out)

    def compiled(self, order: Order, streams: int) -> ov.CompiledModel:
        path = self._artifact.graph(order.network)
        shapes = {name: list(shape) for name, shape in order.shapes.items()}
        try:
            model = self._core.read_model(path)
            model.reshape(shapes)
            return self._core.compile_model(model, "CPU", self._config(order, streams))
        except RuntimeError as error:
            raise BackendError(f"openvino cannot compile {path} for {shapes}: {error}") from error

    def write(self, compiled: ov.CompiledModel, out: Path) -> dict[str, Any]:
        """Its blob to `out`; facts for the manifest."""
        disk.write(out, compiled.export_model().getbuffer())
        ports = {"inputs": compiled.inputs, "outputs": compiled.outputs}
        return {kind: {port.any_name: _told(port) for port in each} for kind, each in ports.items()}

    def imported(self, engine: Engine, streams: int, order: Order) -> ov.CompiledModel | None:
        """None where this OpenVINO does not take it, another build of the same version."""
        try:
            blob = ov.Tensor(ov.Type.u8, ov.Shape([len(engine.data)]))
            np.copyto(blob.data, np.frombuffer(engine.data, np.uint8))  # which lets other threads run meanwhile
            return self._core.import_model(blob, "CPU", self._config(order, streams))
        except RuntimeError:
            return None

    def _precision(self, order: Order) -> str:
        """The text encoder runs once a prompt, and its error reaches every step: always f32."""
        return "f32" if order.network == "text_encoder" else self.precision

    def _config(self, order: Order, streams: int) -> dict[str, Any]:
        return {
            "INFERENCE_PRECISION_HINT": self._precision(order),
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self.threads,
            # Fixed cores lose to the operating system wherever anything else runs, our own event loop included.
            "ENABLE_CPU_PINNING": False,
        }


def _told(port: ov.ConstOutput) -> dict[str, Any]:
    return {"type": port.element_type.get_type_name(), "shape": list(port.shape)}
