"""Runs a TensorRT plan on torch's tensors: fixed buffers, shared workspaces, times. No GPU has run it."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np
import torch

from engines.tensorrt.serve.engine import TensorRtEngine

# TensorRT's names for the types of tensors at a network's edge.
_DTYPES = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32}
_DTYPES |= {"INT64": torch.int64, "BOOL": torch.bool}


class Workspace:
    """Device memory for the intermediate values of plans that never run at once: as much as the largest one wants.

    When a larger plan comes, new memory is taken for that one and those to come; so the largest should come first. The
    older memory stays as long as a plan that was given it, because captured graphs have its address.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = device
        self._memory = torch.empty(0, dtype=torch.uint8, device=device)

    def of(self, size: int) -> torch.Tensor:
        """Return at least `size` bytes. torch aligns a CUDA tensor to 512 bytes, a plan wants 256."""
        if size > len(self._memory) or not len(self._memory):
            self._memory = torch.empty(max(size, 1), dtype=torch.uint8, device=self._device)
        return self._memory


class Plan:
    """An engine that is bound once to its torch tensors: write `inputs`, `enqueue`, read `outputs`."""

    def __init__(
        self, engine: TensorRtEngine, device: torch.device | str = "cuda", workspace: Workspace | None = None
    ) -> None:
        def tensors(ports: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            return {p["name"]: torch.zeros(p["shape"], dtype=_DTYPES[p["dtype"]], device=device) for p in ports}

        self._engine = engine
        self.inputs, self.outputs = tensors(engine.inputs), tensors(engine.outputs)
        for name, tensor in (self.inputs | self.outputs).items():
            engine.bind(name, tensor.data_ptr())
        self._on_gpu = torch.device(device).type == "cuda"
        self._workspace = (workspace or Workspace(device)).of(engine.workspace)
        engine.lend(self._workspace.data_ptr(), engine.workspace)

    def enqueue(self) -> None:
        """Start one execution on torch's current stream; it may be captured, as its addresses never change."""
        self._engine.enqueue(torch.cuda.current_stream().cuda_stream if self._on_gpu else 0)

    def compiled(self) -> bytes:
        return self._engine.compiled()

    def run(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the plan on host arrays and wait for it; the outputs are float32 whatever their type was."""
        for name, tensor in self.inputs.items():
            tensor.copy_(torch.from_numpy(arrays[name]))
        stream = torch.cuda.Stream()  # TensorRT warns of the default stream, and captures nothing on it
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.enqueue()
        stream.synchronize()
        return {name: tensor.float().cpu().numpy() for name, tensor in self.outputs.items()}

    def milliseconds(self, times: int = 20) -> float:
        """Return the median of `times` executions, by the device's clock."""
        stream = torch.cuda.Stream()
        durations = []
        with torch.cuda.stream(stream):
            for _ in range(times + 3):
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                self.enqueue()
                end.record()
                end.synchronize()
                durations.append(start.elapsed_time(end))
        return float(np.median(durations[3:]))


def device_facts() -> dict[str, str]:
    """Return the GPU and what drives it, for a log."""
    if not torch.cuda.is_available():
        return {"torch": importlib.metadata.version("torch"), "gpu": "none that torch can use"}
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        "torch": importlib.metadata.version("torch"),
        "gpu": f"{properties.name}, sm_{properties.major}{properties.minor}",
        "memory": f"{free >> 20} of {total >> 20} MiB free",
    }
