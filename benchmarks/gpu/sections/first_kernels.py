"""Second stage of gpu-first: every kernel once against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.gpu.frame.report import Case, Check
from benchmarks.gpu.sections import attention, kernels, pixels
from benchmarks.gpu.sections.attention import Shape

# Every width of a head of SD 1.5, at a self-attention or a cross-attention each.
_SHAPES = (Shape(2, 1024, 1024, 8, 40), Shape(2, 1024, 77, 8, 80), Shape(2, 256, 256, 8, 160))
_TINY = (Shape(2, 40, 21, 2, 40),)


def cases(check: Check) -> Iterator[Case]:
    for shape in _TINY if check.dry else _SHAPES:
        yield Case(f"attention {shape.case}", partial(attention.compare, check, shape, check.dtype))
    for work in _works(check):
        yield Case(f"{work.what} {work.shape}", partial(kernels.compare, check, work, 2, check.dtype, "ours"))
    yield from pixels.cases(check)


def launches(check: Check) -> Iterator[Callable[[], object]]:
    """So that they are compiled."""
    yield from (partial(attention.launch, check, shape, check.dtype) for shape in _SHAPES)
    yield from (partial(kernels.launch, work, 2, check.dtype) for work in _works(check))
    yield from pixels.launches(check)


def _works(check: Check) -> list[kernels.Work]:
    """Of each kernel its first shape."""
    return list({work.what: work for work in reversed(list(kernels.works(check)))}.values())
