"""Runs an ONNX graph that lies in memory, with its weights on disk: the checks before a build compute with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engines.errors import BackendError
from engines.machine.cores import available_cores

Feeds = Mapping[str, NDArray[Any]]


def run_graph(model: bytes, folder: Path, feeds: Sequence[Feeds]) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield every output by name for each of `feeds`. Weights' paths begin in `folder`. Errors: BackendError."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    # A few runs never earn back what optimising thousands of nodes takes, and folding would copy every weight.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # A graph with hundreds of outputs keeps nothing alive between runs, and its arena would keep it all.
    options.enable_cpu_mem_arena = False
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        names = [port.name for port in session.get_outputs()]
        for feed in feeds:
            values = session.run(None, dict(feed))
            yield {name: np.asarray(value) for name, value in zip(names, values, strict=True)}
    except Exception as error:  # pybind classes without a common base
        raise BackendError(f"onnxruntime cannot run a graph of {folder}: {error}") from error
