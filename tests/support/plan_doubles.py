"""Plans without TensorRT: in the store as a build leaves them, and engines that compute them with torch on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engines.artifact.opened import Artifact
from engines.build.builder import Order
from engines.cache import entries, store
from engines.tensorrt.build.builder import TensorRtBuilder
from engines.tensorrt.serve.engine import port_bytes
from engines.tensorrt.serve.plan import _DTYPES
from model import weights
from pipeline.checkpoint.opened import open_checkpoint

TARGET = "sm_89"


def keep_plan(artifact: Artifact, builder: TensorRtBuilder, order: Order, **other: Any) -> Path:
    """An order's plan, or one whose identity has `other` values; its folder."""
    identity = {**builder.identity(order), **other}
    inputs, outputs = ports(order, artifact)

    def write(_: entries.Fresh, out: Path) -> dict[str, Any]:
        out.write_bytes(f"a plan of {order}".encode())
        return {"inputs": inputs, "outputs": outputs}

    store.keep(identity, {}, write)
    return store.place(identity)


def keep_plans(
    artifact: Artifact, rows: Sequence[int], sizes: Sequence[tuple[int, int]] = (), chunks: int = 1, **other: Any
) -> list[Path]:
    """All that serving pictures of `sizes` (the model's own) takes."""
    default = artifact.spec.defaults
    builder = TensorRtBuilder(artifact, TARGET)
    orders = builder.orders(rows, sizes or [(default.width, default.height)], chunks)
    return [keep_plan(artifact, builder, order, **other) for order in orders]


class Engines:
    """Makes engines of what the store has, and remembers them."""

    def __init__(self, artifact: Artifact) -> None:
        spec, stored = artifact.spec, open_checkpoint(artifact.folder).weights
        self.modules: dict[str, torch.nn.Module] = {
            "text_encoder": weights.load_text(spec, stored),
            "unet": weights.load_unet(spec, stored),
            "vae_decoder": weights.load_vae_decoder(spec, stored),
        }
        self.made: list[TorchEngine] = []

    def __call__(self, found: store.Engine, known: bytes) -> Any:
        network = found.manifest["identity"]["network"]
        assert found.data.startswith(f"a plan of Order(network='{network}'".encode())
        self.made.append(TorchEngine(network, self.modules[network], found.manifest["facts"], known))
        return self.made[-1]

    def of(self, network: str) -> list[TorchEngine]:
        return [engine for engine in self.made if engine.network == network]


class TorchEngine:
    """Stands for TensorRtEngine: all it knows of its tensors are the addresses that it was bound to."""

    def __init__(self, network: str, module: torch.nn.Module, facts: dict[str, Any], known: bytes) -> None:
        self.network, self._module, self.known = network, module, known
        self.inputs, self.outputs = facts["inputs"], facts["outputs"]
        self.rows = self.inputs[0]["shape"][0]
        self.workspace = 1024 * self.rows
        self.bound: dict[str, int] = {}
        self.lent: list[tuple[int, int]] = []
        self.runs = 0

    def lend(self, address: int, size: int) -> None:
        assert address and size >= self.workspace
        self.lent.append((address, size))

    def bind(self, name: str, address: int) -> None:
        assert name not in self.bound, "bound once: a graph has the address"
        self.bound[name] = address

    def enqueue(self, stream: int) -> None:
        assert stream == 0 and self.lent
        self.runs += 1
        outputs = self._module(*(self._tensor(port) for port in self.inputs))
        for port, made in zip(self.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=False):
            self._tensor(port).copy_(made)

    def compiled(self) -> bytes:
        return f"of {self.network}, {self.rows} rows".encode()

    def _tensor(self, port: dict[str, Any]) -> Tensor:
        memory = (ctypes.c_byte * port_bytes(port)).from_address(self.bound[port["name"]])
        return torch.frombuffer(memory, dtype=_DTYPES[port["dtype"]]).view(port["shape"])


def ports(order: Order, artifact: Artifact) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs as the networks' own code says."""
    spec, shapes = artifact.spec, {name: list(shape) for name, shape in order.shapes.items()}
    kind = "INT64" if order.network == "text_encoder" else "FLOAT"
    inputs = [{"name": name, "dtype": kind, "shape": shape} for name, shape in shapes.items()]
    if order.network == "unet":
        outputs = {"out": shapes["sample"]}
    elif order.network == "text_encoder":
        outputs = {"context": [1, spec.text.tokens, spec.unet.context_width]}
        outputs |= {"skipped": [1, spec.skips, *outputs["context"][1:]]} if spec.skips else {}
        outputs |= {"pooled": [1, spec.unet.pooled_width]} if spec.unet.pooled_width else {}
    else:
        _, _, h, w = shapes["latents"]
        outputs = {"picture": [1, 3, h * spec.vae.factor, w * spec.vae.factor]}
    return inputs, [{"name": name, "dtype": "FLOAT", "shape": shape} for name, shape in outputs.items()]
