"""First stage of gpu-first: what machine this is, and all that the other stages launch, compiled in parallel."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu import environment, warm
from benchmarks.gpu.check import Case, Check


def cases(check: Check) -> Iterator[Case]:
    yield from environment.cases(check)
    yield warm.case(check, "first", share=0.9)
