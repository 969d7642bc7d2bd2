"""The fixed buffers of a denoiser: what whoever steps writes, and what a run leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphs import ports
from pipeline.arrays import F32
from pipeline.conditions.style import Style
from pipeline.loras.layers import RANKS
from pipeline.loras.lora import Lora, RowInputs, zeros
from pipeline.spec import Spec


class Buffers:
    """Rows of a UNet's inputs and outputs as host arrays: the data of engines.backend.Denoiser.

    Of a subclass `laid` is what these are laid out for: width, height, rows, chunks and rank.
    """

    # Of the numbers of its rows' LoRAs: uint16 are bfloat16 (Backend.lora_dtype).
    lora_type: type[np.float32] | type[np.uint16] = np.float32

    def __init__(self, spec: Spec, width: int, height: int, rows: int, chunks: int = 1, rank: int = 0) -> None:
        """Allocate for pictures of `width` x `height` pixels and prompts of `chunks` times the encoder's length.

        A row's LoRA is filled up to `rank` (one of pipeline.loras.layers.RANKS; 0: the least), and is nobody's copy.
        """
        sides = ports.sides(spec, width, height, rows, chunks, rank)
        layers = ports.adapted_layers("unet", spec)
        adapted = {port.name for port in ports.adapters(layers)}
        self.inputs: dict[str, F32] = {
            name: np.zeros(shape, np.float32)
            for name, shape in ports.shapes("unet", spec, sides).items()
            if name not in adapted
        }
        self.rank, self._no_lora = sides["rank"], zeros(layers, sides["rank"], self.lora_type)
        self._loras: list[RowInputs] = [self._no_lora] * rows
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

    def put_lora(self, row: int, lora: Lora | None) -> None:
        """See Denoiser.put_lora."""
        assert lora is None or (self._no_lora and lora.rank == self.rank), "a LoRA of another rank than the buffers'"
        assert lora is None or all(matrix.dtype == self.lora_type for matrix in lora.unet.values()), "of another type"
        self._loras[row] = self._no_lora if lora is None else lora.unet

    def row(self, row: int) -> dict[str, Any]:
        """Return views of one row's inputs, by name, as a batch of one: all float32 but for LoRAs (`lora_type`)."""
        return {**{name: buffer[row : row + 1] for name, buffer in self.inputs.items()}, **self._loras[row]}


class CalledRows(Buffers):
    """See engines.backend.Denoiser: one whose rows are calls, so that a row's bits do not depend on its company."""

    def __init__(self, call: Callable[[dict[str, F32]], F32], spec: Spec, *laid: int) -> None:
        """`call`: from a row's inputs, as a batch of one, to its output without the batch."""
        super().__init__(spec, *laid)
        self._call = call

    def run(self, rows: Sequence[int]) -> None:
        """See Denoiser.run."""
        for row in rows:
            self.outputs[row] = self._call(self.row(row))


def text_inputs(spec: Spec, ids: NDArray[np.int64], lora: Lora | None, rank: int = RANKS[0]) -> dict[str, NDArray[Any]]:
    """Return the text encoder's inputs for token ids [tokens], as a batch of one; `lora`: see Backend.encode_text.

    `rank`: of the zeros that it is given where no LoRA adds to it.
    """
    layers = ports.adapted_layers("text_encoder", spec)
    assert layers or lora is None, "the model takes no LoRA"
    adds = lora.text if lora is not None and lora.text is not None else zeros(layers, rank)
    return {"ids": ids[None], **adds}
