"""Second stage of gpu-first: every kernel once against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.sections import attention, kernels, pixels
from benchmarks.gpu.sections.attention import Shape

# Every width of a head of SD 1.5, at a self-attention or a cross-attention each.
_SHAPES = (Shape(2, 1024, 1024, 8, 40), Shape(2, 1024, 77, 8, 80), Shape(2, 256, 256, 8, 160))
_TINY = (Shape(2, 40, 21, 2, 40),)


def cases(report: Report) -> Iterator[Case]:
    for shape in _TINY if report.dry else _SHAPES:
        yield Case(f"attention {shape.case}", partial(attention.compare, report, shape, report.dtype))
    for work in _works(report):
        yield Case(f"{work.what} {work.shape}", partial(kernels.compare, report, work, 2, report.dtype, "ours"))
    yield from pixels.cases(report)


def launches(report: Report) -> Iterator[Callable[[], object]]:
    """Launch the kernels, so that they are compiled."""
    yield from (partial(attention.launch, report, shape, report.dtype) for shape in _SHAPES)
    yield from (partial(kernels.launch, work, 2, report.dtype) for work in _works(report))
    yield from pixels.launches(report)


def _works(report: Report) -> list[kernels.Work]:
    """List each kernel's first shape."""
    return list({work.what: work for work in reversed(list(kernels.works(report)))}.values())
