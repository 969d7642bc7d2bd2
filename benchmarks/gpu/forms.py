"""Other forms of SD 1.5's pass than the one of section `unet`: which of them should serve?

GEGLU inside its matrix product, against a library's product and a kernel after it. The transformers' residuals in 64
passes of their own, against products that add them (engines/cuda_folds.py). Twins: two rows of each latent, computed
once until the first cross-attention, 2.6% of the arithmetic, as a guided step has them. Dependent launches: each
kernel is set up while the one before it runs (kernels/dependent.py), and must have the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu import warm
from benchmarks.gpu.check import Case, Check
from benchmarks.gpu.dependent import compare
from benchmarks.gpu.unet import ROWS, Nets, cases_of, reference

_NAME = "SD 1.5"
# The first is section `unet`'s own, again: forms are compared within one run of one process.
_MODES = ("ours", "ours, twins", "ours, fused geglu", "ours, residuals apart")


def cases(check: Check) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    nets, right, counts = Nets(check), {}, ROWS[:2]
    yield Case(f"{_NAME} float32", partial(reference, check, _NAME, right))
    for mode in _MODES:
        yield from cases_of(check, nets, _NAME, mode, right, counts)
    yield Case("compile ahead", partial(warm.compile_ahead, check, "dependents"))
    for rows in counts[: 1 if check.dry else None]:
        yield Case(f"{_NAME} dependent {rows} rows", partial(_dependent, check, nets, rows))


def _dependent(check: Check, nets: Nets, rows: int) -> None:
    compare(check, nets.get(_NAME, "ours"), _NAME, rows)
