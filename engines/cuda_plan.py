"""Running a TensorRT plan on torch's tensors: one engine, one static shape, fixed buffers.

Full TensorRT and TensorRT for RTX give the same objects, so this file imports neither. Never run: no machine of ours
has a GPU that either may use.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np
import torch

# TensorRT's names for the types of tensors at a network's edge.
_DTYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32}
_DTYPES |= {"INT64": torch.int64, "BOOL": torch.bool}


class Plan:
    """An engine with static shapes, bound once to tensors of its own: write `inputs`, `enqueue`, read `outputs`.

    `trt` is the module that made `engine`; every shape of the engine must be static, as one profile with
    min = opt = max is once `set_input_shape` was called. What enqueue puts on a stream may be captured.
    """

    def __init__(self, trt: Any, engine: Any, device: str = "cuda") -> None:
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        self._engine = engine  # a context does not keep its engine
        # The memory of activations is torch's, in its one pool, and its size is known.
        self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        for name in names:
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                self._context.set_input_shape(name, tuple(engine.get_tensor_shape(name)))
        for name in names:
            dtype = _DTYPES[engine.get_tensor_dtype(name).name]
            tensor = torch.zeros(tuple(self._context.get_tensor_shape(name)), dtype=dtype, device=device)
            into = self.inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else self.outputs
            into[name] = tensor
            if not self._context.set_tensor_address(name, tensor.data_ptr()):
                raise RuntimeError(f"TensorRT does not take a tensor of {list(tensor.shape)} for {name}")
        self.scratch = engine.device_memory_size_v2  # bytes of activations
        self._scratch = torch.empty(max(self.scratch, 1), dtype=torch.uint8, device=device)
        self._context.set_device_memory(self._scratch.data_ptr(), self.scratch)

    def enqueue(self) -> None:
        """One execution on torch's current stream."""
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT refused to enqueue")

    def run(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Host to host, synchronously; float32 out whatever the type was."""
        for name, tensor in self.inputs.items():
            tensor.copy_(torch.from_numpy(arrays[name]))
        stream = torch.cuda.Stream()  # TensorRT warns of the default stream, and captures nothing on it
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.enqueue()
        stream.synchronize()
        return {name: tensor.float().cpu().numpy() for name, tensor in self.outputs.items()}

    def milliseconds(self, times: int = 20) -> float:
        """The median of `times` executions, by the device's own clock."""
        stream = torch.cuda.Stream()
        found = []
        with torch.cuda.stream(stream):
            for _ in range(times + 3):
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                self.enqueue()
                end.record()
                end.synchronize()
                found.append(start.elapsed_time(end))
        return float(np.median(found[3:]))


def device_facts() -> dict[str, str]:
    """The GPU and what drives it, for a log."""
    if not torch.cuda.is_available():
        return {"torch": importlib.metadata.version("torch"), "gpu": "none that torch can use"}
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        "torch": importlib.metadata.version("torch"),
        "gpu": f"{properties.name}, sm_{properties.major}{properties.minor}",
        "memory": f"{free >> 20} of {total >> 20} MiB free",
    }
