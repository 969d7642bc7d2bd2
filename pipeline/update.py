"""The arithmetic between two UNet calls, in float32 on the host: guidance, a sampler's table, a mask.

One order of operations for every caller, so that a picture's bits do not depend on who steps it. Terms whose
coefficient is zero are left out: cheaper, and 0 x NaN of a former tenant never enters.
"""

from __future__ import annotations

import numpy as np

from pipeline.arrays import F32
from pipeline.conditions.mask import Inpaint
from pipeline.samplers import STATE


def guide(positive: F32, negative: F32, guidance: float) -> F32:
    """Apply classifier-free guidance (Ho & Salimans 2022, eq. 6, in its extrapolating form)."""
    guided = positive.copy()
    guided -= negative
    guided *= np.float32(guidance)
    guided += negative
    return guided


def combine(coefficients: F32, terms: F32) -> F32:
    """Return sum_i coefficients[i] * terms[i]: one row of a table, [7] over [7, C, h, w]."""
    total = np.zeros(terms.shape[1:], np.float32)
    for coefficient, term in zip(coefficients, terms, strict=True):
        if coefficient:
            total += coefficient * term
    return total


def advance(terms: F32, matrix: F32) -> None:
    """Replace the state in `terms` [7, C, h, w] (x, h1..h4, out, noise) by the one after an evaluation.

    matrix [6, 7]: the table's of that evaluation, whose last row predicts x0 and is not used here.
    """
    terms[:STATE] = [combine(row, terms) for row in matrix[:STATE]]


def keep(x: F32, inpaint: Inpaint, noise: F32, level: F32) -> F32:
    """Return x [C, h, w] after an evaluation, with the original where the mask is 0: see Inpaint.

    noise [C, h, w]: the picture's first; level [2]: how much of original and noise (Table.levels).
    """
    known = combine(level, np.stack([inpaint.original, noise]))
    mixed = inpaint.mask * x + (np.float32(1) - inpaint.mask) * known
    # Not 1 x + 0 known: that makes a -0 a 0, and NaN of an infinity.
    return np.where(inpaint.mask == 1, x, mixed)
