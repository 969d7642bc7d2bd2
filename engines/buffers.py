"""The fixed buffers of a denoiser: what whoever steps writes, and what a run leaves."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphs import ports
from pipeline.arrays import F32
from pipeline.conditions.style import Style
from pipeline.spec import Spec


class Buffers:
    """Rows of a UNet's inputs and outputs as host arrays: the data of engines.backend.Denoiser."""

    def __init__(self, spec: Spec, width: int, height: int, rows: int, chunks: int = 1) -> None:
        """Allocate for pictures of `width` x `height` pixels and prompts of `chunks` times the encoder's length."""
        sides = ports.sides(spec, width, height, rows, chunks)
        self.inputs: dict[str, F32] = {
            name: np.zeros(shape, np.float32) for name, shape in ports.shapes("unet", spec, sides).items()
        }
        self.samples, self.timesteps = self.inputs["sample"], self.inputs["timestep"]
        self.contexts = self.inputs["context"]
        self.guidance = self.inputs.get("guidance", np.zeros(rows, np.float32))
        self.guidance[:] = 1
        self.styles = self.inputs.get("style", np.zeros((rows, 0, spec.unet.context_width), np.float32))
        self.style_weights = self.inputs.get("style_weight", np.zeros(rows, np.float32))
        self.outputs = np.zeros((rows, spec.unet.out_channels, *self.samples.shape[2:]), np.float32)

    def put(self, row: int, inputs: Mapping[str, F32]) -> None:
        """See Denoiser.put."""
        for name, value in inputs.items():
            self.inputs[name][row] = value

    def put_style(self, row: int, style: Style | None, which: int) -> None:
        """See Denoiser.put_style."""
        self.style_weights[row] = 0 if style is None else style.weight
        self.styles[row] = 0 if style is None else style.row(which)

    def row(self, row: int) -> dict[str, F32]:
        """Return views of one row's inputs, by name, as a batch of one."""
        return {name: buffer[row : row + 1] for name, buffer in self.inputs.items()}
