"""Writes what TensorRT says of a plan's layers: which kernel runs each, in which type and layout, and what it fused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.cache import disk

WITHOUT_GPU = "none: a plan of TensorRT for RTX cannot be opened without its GPU"
FAILED = "none: TensorRT cannot open the plan that it has just built"


def inspection(trt: Any, engine: Any) -> str:
    """Return what TensorRT's inspector says of an engine's layers, as JSON.

    Names and kernels need `config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED` when the plan is built.
    """
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return json.dumps(json.loads(text), indent=1)


def save_inspection(trt: Any, log: Any, plan: Path, beside: Path) -> dict[str, Any]:
    """Open a plan on the GPU that it was built on, and write the inspection to `beside`; return facts for its manifest.

    `workspace`: bytes of intermediate values that one execution takes. Errors: DiskError.
    """
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        return {"inspection": FAILED}
    disk.write(beside, inspection(trt, engine).encode())
    return {"inspection": beside.name, "workspace": engine.device_memory_size_v2}
