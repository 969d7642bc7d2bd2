"""Puts our kernels into TensorRT plans, as ahead-of-time Python plugins, and into a plan's identity.

`register` tells TensorRT's plugin registry of this process about kernels compiled for one architecture; a plan that
contains them needs neither Python nor this registration to run. Plans are built in a process of their own, so nothing
is ever taken out of the registry. Nothing here has run with TensorRT's libraries: tests run it against the genuine
Python bindings of 10.15 and 11.4 without them (tests/support/tensorrt_bindings.py), `make trt-check` runs all of it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from onnx import ModelProto

import kernels
from engines.tensorrt.plugins.rewrite import rewrite
from kernels.plugins import NAMESPACE, Plugin, Source, compile_plugin, evaluate

_TYPES = {"*fp16": "FP16", "*bf16": "BF16", "*fp32": "FP32"}  # TensorRT's words (tensorrt.plugin.AutoTuneCombination)
Facts = dict[str, Any]
# Of kernels/, what the plugins are made from.
SOURCES = ("aot.py", "attention.py", "attention_tiles.py", "launch.py", "plugins.py")


@functools.cache
def kernels_hash() -> str:
    """Hash our kernels for an engine's identity: their sources and the version of the Triton that compiles them."""
    digest = hashlib.sha256(importlib.metadata.version("triton").encode())
    for name in SOURCES:
        digest.update(Path(kernels.__path__[0], name).read_bytes())
    return digest.hexdigest()


def register(trtp: ModuleType, sources: Iterable[Source], arch: int) -> list[Plugin]:
    """Compile plugins for one architecture and register them with `trtp` (tensorrt.plugin).

    A plugin that is registered already stays: within one process and architecture it is the same.
    """
    plugins = [compile_plugin(source, arch) for source in sources]
    for plugin in plugins:
        if not hasattr(trtp.op, NAMESPACE) or not hasattr(getattr(trtp.op, NAMESPACE), plugin.name):
            _register(trtp, plugin)
    return plugins


def _register(trtp: ModuleType, plugin: Plugin) -> None:
    name = f"{NAMESPACE}::{plugin.name}"
    inputs = [p.name for p in plugin.inputs]
    kinds = ",".join(_TYPES[p.type] for p in plugin.parameters if p.kind != "scalar")

    def describe(*tensors: Any) -> Any:
        return tensors[0].like()

    def combinations(*tensors: Any) -> list[Any]:
        return [trtp.AutoTuneCombination(kinds, "LINEAR")]

    def implement(*arguments: Any) -> tuple[str, str, Any, Any]:
        return launch(trtp, plugin, arguments[: len(inputs)])

    # TensorRT reads names and types off the functions' signatures, which here follow from the plugin.
    described = dict.fromkeys(inputs, trtp.TensorDesc)
    outputs = {"outputs": tuple[trtp.TensorDesc]}
    _sign(describe, described, trtp.TensorDesc)
    _sign(combinations, described | outputs, list[trtp.AutoTuneCombination])
    _sign(
        implement,
        described | outputs | {"tactic": int},
        tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs],
    )
    trtp.register(name)(describe)
    trtp.autotune(name)(combinations)
    trtp.aot_impl(name)(implement)


def _sign(function: Any, parameters: dict[str, Any], returned: Any) -> None:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in parameters.items()]
    function.__signature__ = inspect.Signature(named, return_annotation=returned)


def launch(trtp: ModuleType, plugin: Plugin, inputs: Iterable[Any]) -> tuple[str, str, Any, Any]:
    """Return what TensorRT wants of an implementation: the entry's name, PTX, launch parameters, and the scalars.

    `inputs`: descriptions of the input tensors, with symbolic shapes.
    """
    shapes = [tensor.shape_expr for tensor in inputs]

    def value(expression: Any) -> Any:
        return evaluate(expression, lambda tensor, axis: shapes[tensor][axis], trtp.cdiv)

    x, y, z = map(value, plugin.grid)
    parameters = trtp.KernelLaunchParams()
    parameters.grid_x, parameters.grid_y, parameters.grid_z = x, y, z
    parameters.block_x = plugin.threads
    parameters.shared_mem = plugin.shared
    # Each has to be a SymInt32 itself: it says how many bytes the kernel's argument has.
    scalars = trtp.SymIntExprs.from_tuple([trtp.SymInt32(value(scalar)) for scalar in plugin.scalars])
    return plugin.entry, plugin.ptx, parameters, scalars


def into_graph(trtp: ModuleType | None, model: ModelProto, attention: str, target: str) -> tuple[ModelProto, Facts]:
    """Return the graph of a plan with its plugins in it, and what the plan's manifest says of them.

    `target`: "sm_89"; the plugins are compiled for it and registered in this process, before the parser looks for
    them. `trtp` is tensorrt.plugin, or None for "native".
    """
    result = rewrite(model, attention)
    plugins = [] if trtp is None else register(trtp, result.plugins, int(target.removeprefix("sm_")))
    return result.model, {
        "attention": attention,
        "plugins": {plugin.name: plugin.sha256 for plugin in plugins},
        "replaced": result.replaced,
        "native": result.kept,
    }
