"""A tower of a CLIP folder as an engine: float32, on the host, one text or picture a call.

A picture is seen once a request, off the step's path, so towers stay on the host whatever runs the UNet, with half of
its cores: the steps and the doors keep the others.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

import graphs
from engines.graphs import graph_of
from engines.machine.cores import available_cores
from graphs import wire
from pipeline.arrays import F32
from pipeline.checkpoint.clip import Clip

Tower = Callable[[NDArray[Any]], F32]

# By backend; what has no libraries of its own on the host computes in torch, which it needs anyway.
_ON_HOST = {
    "openvino": ("engines.cpu.tower", "OpenVinoTower"),
    "onnxruntime": ("engines.cpu.onnxruntime", "OnnxRuntimeTower"),
}
_TORCH = ("engines.cpu.torch", "TorchTower")


def tower_of(clip: Clip, network: str, backend: str, threads: int | None = None) -> Tower:
    """Return a call from one input of `network` (graphs.TOWERS), without its rows, to its first output.

    `backend`: the name of the one that runs the UNet. Any thread may call it; one at a time is computed.
    Errors: CheckpointError for weights that do not fit; BackendError; those of graph_of.
    """
    check_tower(clip, network)
    module, kind = _ON_HOST.get(backend, _TORCH)
    run = getattr(importlib.import_module(module), kind)(clip, network, threads or max(1, available_cores() // 2))
    lock = threading.Lock()

    def call(value: NDArray[Any]) -> F32:
        with lock:
            return run(value)

    return call


def check_tower(clip: Clip, network: str) -> None:
    """Compare a tower's tensors with what its graph wants. Errors: CheckpointError; those of graph_of."""
    clip.weights.check(graphs.part_of(network), wire.weights(graph_of(network, clip.spec)))
