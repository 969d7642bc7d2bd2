"""First stage of gpu-first: what machine this is, and all that the other stages launch, compiled in parallel."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.frame import ahead
from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.sections import environment


def cases(report: Report) -> Iterator[Case]:
    yield from environment.cases(report)
    yield ahead.case(report, "first", share=0.9)
