"""The arithmetic between two UNet calls, in float32 on the host: guidance, a sampler's table, a mask.

One order of operations for every caller, so that a picture's bits do not depend on who steps it. Terms whose
coefficient is zero are left out: cheaper, and 0 x NaN of a former tenant never enters. Which these are is told once a
picture (Table.sums): the latents of a small model have a few hundred numbers, and each call of numpy takes its time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.arrays import F32
from pipeline.conditions.mask import Inpaint
from pipeline.samplers import STATE
from pipeline.samplers.table import Sum, summands


def guide(positive: F32, negative: F32, guidance: float, out: F32 | None = None) -> F32:
    """Apply classifier-free guidance (Ho & Salimans 2022, eq. 6, in its extrapolating form); `out`: what it fills."""
    guided = np.subtract(positive, negative, out=out)
    guided *= np.float32(guidance)
    guided += negative
    return guided


def combine(parts: Sum, terms: F32) -> F32:
    """Return the sum of coefficient * terms[i] over `parts`: a row of a table, over [7, C, h, w].

    The sum of one part may be -0 where the captured step (kernels/guided_step.py), which begins with 0, has 0.
    """
    if not parts:
        return np.zeros(terms.shape[1:], np.float32)
    (first, coefficient), *others = parts
    total = coefficient * terms[first]
    for i, coefficient in others:
        total += coefficient * terms[i]
    return total


def advance(terms: F32, sums: Sequence[Sum]) -> None:
    """Replace the state in `terms` [7, C, h, w] (x, h1..h4, out, noise) by the one after an evaluation.

    sums: that evaluation's of the table's; the last of the six predicts x0 and is not used here.
    """
    state = [combine(parts, terms) if parts else 0 for parts in sums[:STATE]]
    for i, term in enumerate(state):
        terms[i] = term


def keep(x: F32, inpaint: Inpaint, noise: F32, level: F32) -> F32:
    """Return x [C, h, w] after an evaluation, with the original where the mask is 0: see Inpaint.

    noise [C, h, w]: the picture's first; level [2]: how much of original and noise (Table.levels).
    """
    known = combine(summands(level), np.stack([inpaint.original, noise]))
    mixed = inpaint.mask * x + (np.float32(1) - inpaint.mask) * known
    # Not 1 x + 0 known: that makes a -0 a 0, and NaN of an infinity.
    return np.where(inpaint.mask == 1, x, mixed)
