"""The UNet as a step sees it: what it keeps of a prompt and of a timestep, and the rest, which a step computes.

This is where another way to run the UNet enters the captured step: a TensorRT plan keeps the context itself of a
prompt, and of a timestep the timestep and the guidance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from engines.cuda.choices import CHOSEN
from graphs import ports
from model.adapted import AdaptedOps, pairs_of
from model.unet import Unet
from pipeline.loras.layers import RANKS, unet_layers

Beside = Mapping[str, Tensor]
NOTHING: Beside = {}
Style = tuple[Tensor, float]  # a picture's tokens as they are for one row, and their weight


Matrices = Mapping[str, Tensor]  # of a LoRA, by a graph's input: A [1, rank, in], B [1, out, rank]


class Network(Protocol):
    """A UNet on one device. Its rows do not depend on each other, but for the last bits where buckets differ."""

    text_width: int  # numbers kept of a prompt
    text_dtype: torch.dtype
    time_width: int  # numbers kept of a timestep
    time_dtype: torch.dtype
    sample_dtype: torch.dtype
    seen: int  # channels of the samples behind those of x: the same at every step, as a UNet that inpaints has them
    # Whether `denoise` takes twins: samples of n rows for times and texts of 2n, rows 2k and 2k + 1 of which share row
    # k of the samples. False also where no picture has two rows.
    twins: bool

    def text(
        self, context: Tensor, style: Style | None = None, beside: Beside = NOTHING, lora: Matrices | None = None
    ) -> Tensor:
        """Return what is kept of a context: float32 [T, D] -> [text_width]; once a prompt, outside the step.

        `style`: a picture's tokens, float32 [style tokens, D], and how much they weigh; of a model with an adapter.
        `beside`: what else its row is given, by the names of the UNet's inputs: Sitting.beside. `lora`: what its
        request adds to the layers, of a model that takes LoRAs.
        """
        ...

    def time(self, timesteps: Tensor, guidance: Tensor) -> Tensor:
        """Return what is kept of timesteps, guidance: float32 [n] -> [n, time_width]; once a table, not in a step."""
        ...

    def denoise(self, samples: Tensor, times: Tensor, texts: Tensor) -> Tensor:
        """Evaluate samples [R, C + seen, h, w], channels_last, times [R, time_width], texts [R, text_width].

        Returns [R, C, h, w]. For twins samples are [R / 2, C + seen, h, w]. It is captured: it may
        allocate memory, and may depend on no value.
        """
        ...

    def buckets(self, rows: int) -> Sequence[int]:
        """Return the numbers of rows, rising up to `rows`, that it is to run."""
        ...


class TorchNetwork:
    """Our modules: of a prompt the keys and values of every cross-attention, of a timestep every resnet's shift.

    SDXL's shifts depend on prompt and timestep: there what each adds to them is kept, and a step projects the sum. That
    is 0.04 of the 1,500 GFLOP of a row of 1024x1024 (counted), where keeping them would take a table for each prompt.

    Behind a prompt's keys and values lie the matrices of its LoRA, so that they come and go with it, and rows of other
    LoRAs are one batched product a layer.
    """

    def __init__(self, unet: Unet, tokens: int, rank: int = 0, *, twins: bool = CHOSEN.twins) -> None:
        """Project zeros once, to learn the widths; `tokens` are those of a context, all its chunks.

        `rank`: that LoRAs are filled up to, of a UNet that takes them.
        `twins`: let guided rows be computed once until they differ, where the model has them.
        """
        self._unet = unet
        parameter = unet.conv_in.weight
        self.sample_dtype = self.text_dtype = self.time_dtype = parameter.dtype
        self.seen = unet.spec.in_channels - unet.spec.out_channels
        device = parameter.device
        self._no_style = torch.zeros(unet.spec.style_tokens, unet.spec.context_width, device=device)
        self._embedded = 4 * unet.spec.channels[0] if unet.spec.size_width else 0
        layers = unet_layers(unet.spec) if unet.spec.adapted else {}
        sides = {"rows": 1, "rank": rank or RANKS[0]}
        self._no_lora = {port.name: torch.zeros(port.sized(sides), device=device) for port in ports.adapters(layers)}
        self._loras = [matrix.shape[1:] for matrix in self._no_lora.values()]
        self._lora_widths = [shape.numel() for shape in self._loras]
        kept = self._kept(torch.zeros(tokens, unet.spec.context_width, device=device))
        self._texts = [kv.shape[1:] for kv in kept]  # [tokens, width] of each that is kept
        self._text_widths = [shape.numel() for shape in self._texts]
        self._time_widths = [shift.shape[1] for shift in self._shifts(torch.ones(1, device=device))]
        self.text_width = sum(self._text_widths) + sum(self._lora_widths) + self._embedded
        self.time_width = sum(self._time_widths)
        # A distilled network is given its guidance, and has one row; without attention to the text nothing has twins,
        # nor where rows differ in the time's shifts from the first resnet on.
        self.twins = twins and not (unet.spec.guidance_width or self._embedded) and bool(self._text_widths)

    def text(
        self, context: Tensor, style: Style | None = None, beside: Beside = NOTHING, lora: Matrices | None = None
    ) -> Tensor:
        matrices = {name: (lora or self._no_lora)[name].to(self.text_dtype) for name in self._no_lora}
        with self._adding(matrices):
            kept = [part.flatten() for part in (*self._kept(context, style), *matrices.values())]
        if self._embedded:
            kept.append(self._unet.embedded_text(beside["pooled"][None], beside["sizes"][None])[0])
        return torch.cat(kept) if kept else context.new_zeros(0, dtype=self.text_dtype)

    def _adding(self, matrices: Matrices) -> contextlib.AbstractContextManager[None]:
        """Let the UNet add LoRAs for as long as the context lasts; where it takes none, do nothing."""
        ops = self._unet.ops
        return ops.adding(self._unet, pairs_of(matrices)) if isinstance(ops, AdaptedOps) else contextlib.nullcontext()

    def _kept(self, context: Tensor, style: Style | None = None) -> list[Tensor]:
        one = context[None].to(self.text_dtype)
        if not self._unet.spec.style_tokens:
            return self._unet.context_kv(one)
        tokens, weight = style or (self._no_style, 0.0)
        return self._unet.context_kv(one, tokens[None].to(self.text_dtype), torch.full_like(one[:, 0, 0], weight))

    def time(self, timesteps: Tensor, guidance: Tensor) -> Tensor:
        return torch.cat(self._shifts(timesteps, guidance), dim=1)

    def denoise(self, samples: Tensor, times: Tensor, texts: Tensor) -> Tensor:
        shapes = [*self._texts, *self._loras]
        *kept, embedded = texts.split([*self._text_widths, *self._lora_widths, self._embedded], dim=1)
        parts = [part.unflatten(1, shape) for part, shape in zip(kept, shapes, strict=True)]
        kv, matrices = parts[: len(self._texts)], dict(zip(self._no_lora, parts[len(self._texts) :], strict=True))
        with self._adding(matrices):
            if self._embedded:
                return self._unet.denoise(samples, self._unet.shifts(times + embedded), kv)
            return self._unet.denoise(samples, times.split(self._time_widths, dim=1), kv, len(texts) // len(samples))

    def buckets(self, rows: int) -> list[int]:
        return bucket_sizes(rows)

    def _shifts(self, timesteps: Tensor, guidance: Tensor | None = None) -> list[Tensor]:
        if self._embedded:
            given = (timesteps if guidance is None else guidance) if self._unet.spec.guidance_width else None
            return [self._unet.embedded_time(timesteps, given)]
        if self._unet.spec.guidance_width:
            return self._unet.time_shifts(timesteps, timesteps if guidance is None else guidance)
        return self._unet.time_shifts(timesteps)


def bucket_sizes(rows: int) -> list[int]:
    """Return the buckets 1, 2, 4, .. 16, 20, .. 32, 40, .. 64, 80, ..: four to a doubling, from eight rows on.

    Of three rows a quarter of the bucket is idle, of more at most a fifth. Each bucket is run three times and captured
    when the server starts: 9 buckets of 73 rows in all for 8 seats (16 rows), 13 of 177 for 16, 21 of 801 for 64, 29
    of 3,297 for 256; where there are twins, all but the first once more, so that whoever is guided finds one no larger.
    Steps that stayed at 8 rows beyond 64 would leave a tenth idle there, but start-up would grow with the square of the
    seats: 25 buckets of 1,185 rows for 64, 73 of 16,737 for 256.
    """
    sizes = [1]
    while sizes[-1] < rows:
        size = sizes[-1]
        quarter = (1 << size.bit_length() - 1) // 4
        sizes.append(min(rows, size + (1 if size == 1 else max(2, quarter))))
    return sizes
