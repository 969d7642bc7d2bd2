"""OpenVINO's inference requests: arrays are bound to them, and they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from engines.errors import DeviceError


def infer_zeros(engine: ov.CompiledModel, shapes: Mapping[str, Sequence[int]]) -> None:
    """Run an engine once, with zeros: at its first run it packs its weights."""
    request = engine.create_infer_request()
    for port in engine.inputs:
        tensor = ov.Tensor(port.element_type, ov.Shape(shapes[port.any_name]))
        tensor.data[...] = 0
        request.set_tensor(port, tensor)
    request.infer()


def bind(request: ov.InferRequest, inputs: dict[str, NDArray[Any]]) -> None:
    """Bind the arrays themselves to the inputs that nodes take."""
    taken = {port.get_any_name() for port in request.model_inputs}
    for name, value in inputs.items():
        if name in taken:
            request.set_tensor(name, ov.Tensor(value, shared_memory=True))


def shared(array: NDArray[Any]) -> ov.Tensor:
    """Return a tensor over an array's own memory; numbers of 16 bits are bfloat16."""
    if array.dtype == np.uint16:
        return ov.Tensor(array, ov.Shape(array.shape), ov.Type.bf16)
    return ov.Tensor(array, shared_memory=True)


def infer(request: ov.InferRequest, **inputs: NDArray[Any]) -> None:
    try:
        for name, value in inputs.items():
            request.set_tensor(name, ov.Tensor(np.ascontiguousarray(value)))
        request.infer()
    except RuntimeError as error:
        raise DeviceError(f"openvino failed: {error}") from error
