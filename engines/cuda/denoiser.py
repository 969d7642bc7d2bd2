"""The UNet of the step over host arrays, for `generate` and `make check`; what serves is the stepper."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engines.buffers import Buffers
from engines.cuda.network import Network
from engines.cuda.stream import Stream
from pipeline.spec import Spec


class CudaDenoiser(Buffers):
    """See engines.backend.Denoiser. If not `exact`, rows are one batch in the stepper's bucket.

    They are never twins, whatever the stepper would take: nobody says here which rows belong together.
    """

    def __init__(self, network: Network, stream: Stream, spec: Spec, *laid: int, exact: bool) -> None:
        super().__init__(spec, *laid)
        self._network, self._stream, self._exact = network, stream, exact

    def run(self, rows: Sequence[int]) -> None:
        """See Denoiser.run."""
        for batch in [[row] for row in rows] if self._exact else [list(rows)] if rows else []:
            self._run(batch)

    def _run(self, rows: list[int]) -> None:
        network, new, most = self._network, self._stream.new, len(self.samples)
        size = 1 if self._exact else min(bucket for bucket in network.buckets(most) if bucket >= len(rows))
        padded = rows + rows[:1] * (size - len(rows))
        with self._stream.here():
            samples = new(self.samples[padded]).to(network.sample_dtype)
            times = network.time(new(self.timesteps[padded]), new(self.guidance[padded]))
            texts = torch.stack([self._text(row) for row in padded])
            outputs = network.denoise(samples.contiguous(memory_format=torch.channels_last), times, texts)
            fetched = self._stream.fetch(outputs[: len(rows)].float())  # numpy has no bfloat16
        self.outputs[rows] = fetched.floats()

    def _text(self, row: int) -> torch.Tensor:
        new = self._stream.new
        seen = (new(self.styles[row]), float(self.style_weights[row])) if self.styles.size else None
        beside = {name: new(self.inputs[name][row]) for name in ("pooled", "sizes") if name in self.inputs}
        lora = {name: new(matrix) for name, matrix in self._loras[row].items()}
        return self._network.text(new(self.contexts[row]), seen, beside, *([lora] if lora else []))
