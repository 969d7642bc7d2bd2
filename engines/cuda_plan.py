"""Running a TensorRT plan on torch's tensors: fixed buffers, host to host, and timed. Never run on a GPU."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np
import torch

from engines.tensorrt_runner import TensorRtEngine

# TensorRT's names for the types of tensors at a network's edge.
_DTYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32}
_DTYPES |= {"INT64": torch.int64, "BOOL": torch.bool}


class Plan:
    """An engine bound once to torch tensors of its own: write `inputs`, `enqueue`, read `outputs`."""

    def __init__(self, engine: TensorRtEngine, device: str = "cuda") -> None:
        def tensors(ports: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            return {p["name"]: torch.zeros(p["shape"], dtype=_DTYPES[p["dtype"]], device=device) for p in ports}

        self._engine = engine
        self.inputs, self.outputs = tensors(engine.inputs), tensors(engine.outputs)
        for name, tensor in (self.inputs | self.outputs).items():
            engine.bind(name, tensor.data_ptr())
        # torch gives a CUDA tensor of its own 512 bytes of alignment, a plan's workspace wants 256.
        self._workspace = torch.empty(max(engine.workspace, 1), dtype=torch.uint8, device=device)
        engine.lend(self._workspace.data_ptr(), engine.workspace)

    def enqueue(self) -> None:
        """One execution on torch's current stream."""
        self._engine.enqueue(torch.cuda.current_stream().cuda_stream)

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
