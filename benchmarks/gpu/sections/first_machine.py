"""First stage of gpu-first: what machine this is, and all that the other stages launch, compiled in parallel."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.frame import ahead
from benchmarks.gpu.frame.report import Case, Check
from benchmarks.gpu.sections import environment


def cases(check: Check) -> Iterator[Case]:
    yield from environment.cases(check)
    yield ahead.case(check, "first", share=0.9)
