"""The UNet of a captured step as TensorRT's plans: what is kept of a prompt is its context, of a timestep itself.

A plan is one number of rows over fixed buffers. Any number is run by the plans there are: with plans of 2, 4 and 8
rows, 16 rows take the last one twice, and 3 rows the second with a row to spare. All of it is in the step's one CUDA
graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from engines.cuda.network import NOTHING, Beside, Matrices, Style
from engines.tensorrt.serve.plan import Plan


class PlanNetwork:
    """See engines.cuda.network.Network. `plan_of` loads the plan of a number of rows, `sizes` are those there are.

    Plans are loaded when their bucket is first run, which is before it is captured, and the largest first: so
    one workspace suffices, and a plan that no bucket needs takes no memory.
    """

    twins = False  # a plan has one number of rows throughout

    def __init__(
        self,
        sizes: Sequence[int],
        plan_of: Callable[[int], Plan],
        guided: bool,
        context_size: int,
        seen: int = 0,
        beside: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Load no plan yet. `guided`: plans have an input for the guidance (LCM). `context_size`: its numbers.

        `seen`: channels of the samples behind those of x. `beside`: the inputs that are kept with a context, and how
        many numbers each has.
        """
        self._beside, self._context_size = dict(beside), context_size
        self.seen = seen
        self._sizes, self._plan_of, self._guided = sorted(sizes), plan_of, guided
        self._plans: dict[int, Plan] = {}
        self.text_width, self.time_width = context_size + sum(beside.values()), 2
        # The types at the edge of a plan (engines/tensorrt/types/typed.py): narrower ones are inside.
        self.text_dtype = self.time_dtype = self.sample_dtype = torch.float32

    def text(
        self, context: Tensor, style: Style | None = None, beside: Beside = NOTHING, lora: Matrices | None = None
    ) -> Tensor:
        assert lora is None, "plans take no LoRAs"
        return torch.cat([context.flatten(), *(beside[name] for name in self._beside)])

    def time(self, timesteps: Tensor, guidance: Tensor) -> Tensor:
        return torch.stack([timesteps, guidance], dim=1)

    def denoise(self, samples: Tensor, times: Tensor, texts: Tensor) -> Tensor:
        rows = len(samples)
        parts = self.parts(rows)
        if len(parts) == 1:
            return self._run(parts[0], samples, times, texts)
        outputs, begin = torch.empty_like(samples[:, : samples.shape[1] - self.seen]), 0
        for size in parts:
            part = slice(begin, min(begin + size, rows))
            outputs[part] = self._run(size, samples[part], times[part], texts[part])
            begin += size
        return outputs

    def buckets(self, rows: int) -> list[int]:
        """Return the buckets: of one plan, then of the largest several times with one more; the last holds `rows`."""
        largest, buckets = self._sizes[-1], {rows}
        for whole in range(0, rows, largest):
            buckets |= {whole + size for size in (0, *self._sizes) if 0 < whole + size < rows}
        return sorted(buckets)

    def parts(self, rows: int) -> list[int]:
        """Return the plans for so many rows: the largest as often as it is full, the smallest that holds the rest."""
        largest = self._sizes[-1]
        whole, rest = divmod(rows, largest)
        return [largest] * whole + ([min(size for size in self._sizes if size >= rest)] if rest else [])

    def _run(self, size: int, samples: Tensor, times: Tensor, texts: Tensor) -> Tensor:
        """Run the plan of `size` rows over as many or fewer; what the spare rows hold changes nothing in the others."""
        if size not in self._plans:
            self._plans[size] = self._plan_of(size)
        plan, rows = self._plans[size], len(samples)
        inputs = plan.inputs
        inputs["sample"][:rows].copy_(samples)
        inputs["timestep"][:rows].copy_(times[:, 0])
        context, *others = texts.split([self._context_size, *self._beside.values()], dim=1)
        inputs["context"][:rows].copy_(context.reshape(inputs["context"][:rows].shape))
        for name, values in zip(self._beside, others, strict=True):
            inputs[name][:rows].copy_(values)
        if self._guided:
            inputs["guidance"][:rows].copy_(times[:, 1])
        plan.enqueue()
        return plan.outputs["out"][:rows]
