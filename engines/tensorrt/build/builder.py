"""Builds plans from an artifact: typed graph, parser, network, plan. Each has static shapes and is strongly typed.

The same lines serve TensorRT for RTX, which needs no GPU, and full TensorRT, which does (engines/tensorrt/api.py has
what differs). The parser reads the weights where they lie in the checkpoint, and the plan goes to its file as it is
made, so that nothing large is held twice.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
from onnx import ModelProto

from engines.artifact.opened import Artifact
from engines.build.builder import Order
from engines.cache import devices, disk
from engines.cache.store import INSPECTION
from engines.errors import BackendError
from engines.tensorrt.api import NO_BF16, api, choose_target, configure, timed
from engines.tensorrt.build.callbacks import build_log, plan_writer, progress_monitor
from engines.tensorrt.build.header import HEADER, read_header
from engines.tensorrt.build.inspection import WITHOUT_GPU, save_inspection
from engines.tensorrt.notes import DeviceNotes, Notes
from engines.tensorrt.types.islands import HEADROOM, METHOD, Study, study
from engines.tensorrt.types.typed import fix_shapes, typed
from graphs import ports

PRECISIONS = ("auto", "f16", "bf16", "f32")
UNPROVEN = "islands chosen on a CPU; no card has run this plan"

# TensorRT's own attention, or our kernel as a plugin where it takes an Attention (full TensorRT only).
ATTENTIONS = ("native", "triton")

Say = Callable[[str], None]


class TensorRtBuilder:
    """A builder of plans of one artifact for one class of GPU.

    `target`: "sm_89", or None for the GPU that is here. `precision`: "auto" is "f16" with islands where float16 is too
    narrow; "bf16" and "f32" are whole. `attention`: one of ATTENTIONS. `notes` keeps what was measured on the CPU,
    `timing` is full TensorRT's timing cache; by default both lie in the cache. Errors: BackendError.
    """

    def __init__(
        self,
        artifact: Artifact,
        target: str | None,
        precision: str = "auto",
        rtx: bool = True,
        *,
        attention: str = "native",
        notes: Notes | None = None,
        timing: Path | None = None,
    ) -> None:
        self.name = "tensorrt_rtx" if rtx else "tensorrt"
        if precision not in PRECISIONS:
            raise BackendError(f"precision {precision!r} is unknown; {self.name} does {', '.join(PRECISIONS)}")
        if attention not in ATTENTIONS:
            raise BackendError(f"attention {attention!r} is unknown; {self.name} does {', '.join(ATTENTIONS)}")
        if rtx and attention == "triton":
            raise BackendError("attention 'triton': TensorRT for RTX takes no plugins; use native, or backend tensorrt")
        self._attention = attention
        self._trt = api(rtx)
        self.version = self._trt.__version__
        self.target = choose_target(self._trt, target, rtx)
        self.precision = "f16" if precision == "auto" else precision
        if self.precision == "bf16" and self.target in NO_BF16:
            raise BackendError(f"precision bf16: {self.target} has no bfloat16 arithmetic; use f16 or f32")
        self._artifact, self._rtx = artifact, rtx
        self._timing = timing or devices.folder() / "tensorrt.timing"
        self._notes = notes or DeviceNotes()

    def orders(self, rows: Sequence[int], sizes: Sequence[tuple[int, int]], chunks: int = 1) -> list[Order]:
        """See Builder.orders."""
        spec = self._artifact.spec
        orders = [Order("text_encoder", ports.shapes("text_encoder", spec, {"rows": 1}))]
        for width, height in sizes:
            for n in rows:
                sides = ports.sides(spec, width, height, n, chunks)
                orders.append(Order("unet", ports.shapes("unet", spec, sides)))
            orders.append(Order("vae_decoder", ports.shapes("vae_decoder", spec, ports.sides(spec, width, height))))
        return orders

    def identity(self, order: Order) -> dict[str, Any]:
        """See Builder.identity."""
        return {
            "artifact": self._artifact.digest,
            "backend": self.name,
            "version": self.version,
            "onnx": onnx.__version__,
            "target": self.target,
            "precision": self.precision,
            "typing": {"method": METHOD, "headroom": HEADROOM, "sources": _sources()},
            "attention": self._attention,
            "kernels": _plugins().kernels_hash() if self._attention == "triton" else None,
            "network": order.network,
            "shapes": {name: list(shape) for name, shape in order.shapes.items()},
        }

    def build(self, order: Order, out: Path, say: Say) -> dict[str, Any]:
        """See Builder.build."""
        begin = time.monotonic()
        say(f"{order.network}: looking for what float16 is too narrow for")
        findings = study(self._artifact, order.network, self._notes) if self.precision == "f16" else None
        looked = time.monotonic()
        graph, kind = self.graph(order, findings)
        inside: dict[str, Any] = {"attention": self._attention}
        if self._attention == "triton":
            trtp = importlib.import_module("tensorrt.plugin")
            graph, inside = _plugins().into_graph(trtp, graph, self._attention, self.target)
        described, plan = self._compile(order, graph, out, say)
        islands = [] if findings is None else [{**vars(island), "type": kind} for island in findings.islands]
        return {
            **described,
            **inside,
            "target": self.target,
            "precision": self.precision,
            "strongly_typed": True,
            "islands": islands,
            "headroom": HEADROOM,
            "emulated_error": None if findings is None else findings.errors[kind],
            "sampled_at": None if findings is None else [findings.side, findings.side],
            "plan": plan,
            "seconds": {"study": round(looked - begin, 3), "build": round(time.monotonic() - looked, 3)},
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,  # bytes, of this process so far
            "unproven": [UNPROVEN],
        }

    def graph(self, order: Order, findings: Study | None) -> tuple[ModelProto, str]:
        """Return the typed graph of an order with its shapes, and its islands' type. Errors: BackendError."""
        model = onnx.load(self._artifact.graph(order.network), load_external_data=False)
        try:
            fix_shapes(model, order.shapes)
        except ValueError as error:
            raise BackendError(f"{self.name} cannot build {order.network}: {error}") from None
        if findings is None:
            return typed(model, self.precision, {}), self.precision
        kind = findings.island_type(bf16=self.target not in NO_BF16)
        return typed(model, "f16", {island.output: kind for island in findings.islands}), kind

    def _compile(self, order: Order, graph: ModelProto, out: Path, say: Say) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parse, build and write; return the parsed network's inputs and outputs, and the facts of the plan."""
        trt, log = self._trt, build_log(self._trt)
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        path = self._artifact.graph(order.network)
        if not parser.parse(graph.SerializeToString(), str(path)):
            reasons = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
            raise self._failure(order, reasons or log.errors)
        described = {
            "inputs": [port(network.get_input(i)) for i in range(network.num_inputs)],
            "outputs": [port(network.get_output(i)) for i in range(network.num_outputs)],
        }
        _allow_plain_attention(trt, network)
        config = builder.create_builder_config()
        configure(trt, config, self.target, self._rtx, self._timing)
        if self.precision == "f32":
            config.clear_flag(trt.BuilderFlag.TF32)  # its products have 10 bits of mantissa, float32 has 23
        config.progress_monitor = progress_monitor(trt, order.network, say)
        if not self._rtx:
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspection beside the plan
        assert not config.get_flag(trt.BuilderFlag.REFIT), "a plan that can be refitted is slower, and nobody asked"
        with disk.written(out) as write:
            writer = plan_writer(trt, write)
            built = builder.build_serialized_network_to_stream(network, config, writer)
            if writer.failed is not None:
                raise writer.failed
        if not built:
            raise self._failure(order, log.errors)
        plan = self._plan(order, out, writer.digest.hexdigest(), log.warnings, config)
        if self._rtx:
            return described, plan | {"inspection": WITHOUT_GPU}
        return described, plan | save_inspection(trt, log, out, out.with_name(INSPECTION))

    def _plan(self, order: Order, out: Path, sha256: str, warnings: list[str], config: Any) -> dict[str, Any]:
        length = out.stat().st_size
        facts: dict[str, Any] = {"bytes": length, "sha256": sha256, "warnings": warnings}
        if not self._rtx:
            disk.make(self._timing.parent)
            disk.write_whole(self._timing, timed(config))
            return facts
        with out.open("rb") as file:
            header = read_header(file.read(HEADER))
        if header is None:
            return facts
        if (header.targets, header.length) != ((self.target,), length):
            raise self._failure(order, [f"its plan's header says {header}, asked was {self.target}"])
        return facts | {"header": {"version": header.version, "targets": list(header.targets)}}

    def _failure(self, order: Order, reasons: Sequence[str]) -> BackendError:
        shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in order.shapes.items())
        why = "; ".join(" ".join(line.split()) for line in reasons) or "it gives no reason"
        return BackendError(f"{self.name} cannot build {order.network} ({shapes}) for {self.target}: {why}")


def _allow_plain_attention(trt: Any, network: Any) -> None:
    """Let TensorRT take an attention apart where it has no fused kernel for it (float32), instead of refusing to build.

    Where there is one it is still taken: the plans of float16 attention are the same bytes with and without this.
    """
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # get_layer gives the base class, with no cast to its own
            layer.attention.decomposable = True


def _plugins() -> ModuleType:
    """Import the plugins when they are first used: our kernels need Triton, which only a builder of plugins has."""
    from engines.tensorrt.plugins import register

    return register


def _parser_error(fault: Any) -> str:
    """Put an error of the parser into words: its description alone often names neither the operator nor the node."""
    return f"{fault.desc()} (operator {fault.node_operator()}, node {fault.node_name()})"


def port(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}


@functools.cache
def _sources() -> str:
    """Return the SHA-256 of the files that decide how a graph is typed: an edit there makes another engine."""
    parts = ("types/typed", "types/ranges", "types/samples", "types/emulation", "types/islands", "api", "build/builder")
    digest = hashlib.sha256()
    for part in parts:
        digest.update((Path(__file__).parents[1] / f"{part}.py").read_bytes())
    return digest.hexdigest()
