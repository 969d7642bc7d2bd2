"""Compares ONNX Runtime with torch: each network's error, and a whole trajectory's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from export.networks import Network
from pipeline.arrays import F32
from pipeline.conditions.sizes import AS_IT_IS
from pipeline.errors import LatentdError
from pipeline.networks import ClipSpec
from pipeline.noise import standard_normal
from pipeline.samplers import OUT_COLUMN, STATE, table
from pipeline.spec import Spec
from pipeline.update import advance, guide

# Of the largest absolute value. Both sides compute in float32 with other orders of summation; measured 1e-6 a
# network and 4e-6 a trajectory on the demo model, so these allow for a deeper model, and for no wrong graph.
NETWORK_TOLERANCE = 1e-4
TRAJECTORY_TOLERANCE = 1e-3

Unet = Callable[[F32, F32, F32], F32]  # sample [n, C, h, w], timestep [n], context [n, T, D] -> [n, C, h, w]


class ExportError(LatentdError):
    """The graph does not compute what the network computes; nothing was vouched for."""


def session(path: Path) -> onnxruntime.InferenceSession:
    """Open the graph in ONNX Runtime, on the CPU. Errors: ExportError when it is not a valid model."""
    try:
        onnx.checker.check_model(str(path))
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # both libraries raise their own unrelated classes
        raise ExportError(f"{path} is not a graph that ONNX Runtime takes: {error}") from error


def network_error(
    network: Network,
    spec: Spec | ClipSpec,
    net: nn.Module,
    running: onnxruntime.InferenceSession,
    weights: Mapping[str, F32] = MappingProxyType({}),
) -> float:
    """Return max |onnx - torch| / max |torch| on the example inputs, of the worst output.

    `weights` are those of a graph that takes them as inputs. Errors: ExportError past the tolerance.
    """
    examples = network.inputs(spec)
    with torch.inference_mode():
        results = net(*(example.value for example in examples))
    wanted = [tensor.numpy() for tensor in (results if isinstance(results, tuple) else (results,))]
    got = running.run(None, {example.name: example.value.numpy() for example in examples} | dict(weights))
    worst = max(relative_error(np.asarray(a), b) for a, b in zip(got, wanted, strict=True))
    return _within(worst, NETWORK_TOLERANCE, network.name)


def trajectory_error(
    spec: Spec, net: nn.Module, running: onnxruntime.InferenceSession, context: F32, pooled: F32 | None = None
) -> float:
    """Return max |onnx - torch| / max |torch| of the latents after eight guided steps.

    `context` [2, T, D] is of a prompt and of no prompt, and so is `pooled` [2, width], of a network that takes it.
    Errors: ExportError past the tolerance.
    """
    given = {"guidance": np.full(2, 8.0, np.float32), "pooled": pooled}
    given["sizes"] = np.repeat(AS_IT_IS.numbers(512, 512)[None], 2, axis=0)
    extra = {name: value for name in spec.unet.conditions if (value := given.get(name)) is not None}

    def torch_unet(sample: F32, timestep: F32, context: F32) -> F32:
        with torch.inference_mode():
            return net(*map(torch.from_numpy, (sample, timestep, context, *extra.values()))).numpy()

    def onnx_unet(sample: F32, timestep: F32, context: F32) -> F32:
        inputs = {"sample": sample, "timestep": timestep, "context": context}
        return np.asarray(running.run(None, inputs | extra)[0])

    error = relative_error(_trajectory(spec, onnx_unet, context), _trajectory(spec, torch_unet, context))
    return _within(error, TRAJECTORY_TOLERANCE, "the trajectory")


def _trajectory(spec: Spec, unet: Unet, context: F32, steps: int = 8, guidance: float = 5.0) -> F32:
    unit = 2 ** (len(spec.unet.channels) - 1)
    side = max(unit, min(spec.unet.sample_size, 32) // unit * unit)  # at most 32, to keep a large model's check quick
    run = table(spec.schedule, "dpmpp_2m", steps)
    noise = standard_normal(0, (spec.unet.in_channels, side, side))[0]
    terms = np.zeros((STATE + 2, *noise.shape), np.float32)
    terms[0] = noise * np.float32(run.initial_scale)
    for sums, t, scale in zip(run.sums(), run.timesteps, run.input_scales, strict=True):
        sample = np.repeat(terms[None, 0] * np.float32(scale), 2, axis=0)
        out = unet(sample, np.full(2, t, np.float32), context)
        terms[OUT_COLUMN] = guide(out[0], out[1], guidance)
        advance(terms, sums)
    return terms[0]


def relative_error(got: F32, wanted: F32) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def _within(error: float, tolerance: float, what: str) -> float:
    if not error <= tolerance:  # a NaN fails too
        raise ExportError(
            f"{what}: ONNX Runtime differs from torch by {error:.2e} of the largest value; at most {tolerance:.0e}"
        )
    return error
