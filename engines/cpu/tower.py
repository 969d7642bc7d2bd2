"""A tower of CLIP by OpenVINO on the CPU."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from engines.cpu.bound import bound
from engines.cpu.core import core
from engines.cpu.requests import infer
from engines.errors import BackendError
from graphs import ports
from pipeline.arrays import F32
from pipeline.checkpoint.clip import Clip


class OpenVinoTower:
    """See engines.clip.tower: one tower of a CLIP folder, compiled from memory as those of engines/cpu/openvino.py."""

    def __init__(self, clip: Clip, network: str, threads: int) -> None:
        self._clip = clip  # whose mapped files are read
        shapes = ports.shapes(network, clip.spec, {"rows": 1})
        config = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        try:
            with clip.weights.letting_go():
                model = bound(core(), clip, network)
                model.reshape({name: list(shape) for name, shape in shapes.items()})
                engine = core().compile_model(model, "CPU", {**config, "ENABLE_CPU_PINNING": False})
        except RuntimeError as error:
            raise BackendError(f"openvino cannot compile {network} of {clip.path}: {error}") from error
        self._request = engine.create_infer_request()
        (self._input,) = shapes

    def __call__(self, value: NDArray[Any]) -> F32:
        infer(self._request, **{self._input: value[None]})
        return self._request.get_output_tensor(0).data[0].copy()
