"""Other forms of SD 1.5's pass than the one of section `unet`: which of them should serve?

GEGLU inside its matrix product, against a library's product and a kernel after it. A library's attention throughout,
against ours. The transformers' residuals in 64 passes of their own, against products that add them
(engines/cuda/folds.py). Twins: two rows of each latent, computed once until the first cross-attention, 2.6% of the
arithmetic, as a guided step could have them. What wins is written into engines/cuda/choices.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.frame import ahead
from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.sections.unet import CHOICES, ROWS, Nets, cases_of, reference

_NAME = "SD 1.5"
# The first is section `unet`'s own, again: forms are compared within one run of one process.
_MODES = ("ours", *CHOICES, "ours, twins", "ours, residuals apart")


def cases(report: Report) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    yield ahead.case(report, "networks")
    nets, right = Nets(report), {}
    yield Case(f"{_NAME} float32", partial(reference, report, _NAME, right))
    for mode in (mode for mode in _MODES if not (report.dry and "cudnn" in mode)):  # which a CPU has not
        yield from cases_of(report, nets, _NAME, mode, right, ROWS)
