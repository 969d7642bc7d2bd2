"""One evaluation of the UNet under way: what it gives its layers in turn, and what it keeps for the way up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.ops import Ops
from model.transformer import Text, to_picture, to_tokens


class Evaluation:
    """An evaluation of n rows of latents, each of which stands for `copies` rows of the text in turn.

    The rows of a guided picture are twins: they differ in their text alone, so they are computed once until a layer
    attends to it. From there on there are n copies rows. The methods are called in the order of execution.
    """

    def __init__(
        self, time_shifts: Sequence[Tensor], context_kv: Sequence[Tensor], copies: int = 1, *, styled: bool = False
    ) -> None:
        """Begin an evaluation; Unet.denoise describes time_shifts and context_kv, which both have n copies rows.

        `styled`: whether keys and values of a picture's tokens follow those of the text.
        """
        # No generators: with one of its own an evaluation would be a cycle, and the shifts of each pass (0.04 MB a row
        # of SD 1.5) stay until Python's collector comes by.
        self.copies = copies  # rows of the text that a row of x stands for, by now
        self._shifts = iter(time_shifts)
        pairs = list(zip(context_kv[::2], context_kv[1::2], strict=True))
        self._texts = iter(list(zip(pairs[::2], pairs[1::2], strict=True)) if styled else [(kv, None) for kv in pairs])
        self._skips: list[tuple[Tensor, int]] = []  # and what a row of each stands for

    def shift(self) -> Tensor:
        """Return the time's shift of the next resnet, for as many rows as there are by now."""
        shift = next(self._shifts)
        return shift if self.copies == 1 else shift[:: self.copies]

    def text(self) -> Text:
        """Return the text of the next layer that attends to it, for all rows: x has as many from then on."""
        copies, self.copies = self.copies, 1
        (k, v), style = next(self._texts)
        return Text(k, v, copies, style)

    def keep(self, x: Tensor) -> None:
        """Keep x for the way up."""
        self._skips.append((x, self.copies))

    def joined(self, x: Tensor, ops: Ops) -> Tensor:
        """Join x [n, c, h, w] and what was kept last, [n, d, h, w] or fewer rows: [n, c + d, h, w]."""
        skip, stood_for = self._skips.pop()
        copies = stood_for // self.copies
        if copies == 1:
            return ops.concat(x, skip)
        # As tokens, where one row beside two of x is a view: the concatenation reads it twice, and nobody writes it
        # twice first.
        both = to_tokens(x).unflatten(0, (-1, copies)), to_tokens(skip)[:, None].expand(-1, copies, -1, -1)
        return to_picture(torch.cat(both, dim=-1).flatten(0, 1), like=x)
