"""Third stage of gpu-first: the captured step of a small network, in both kinds of pixels.

A replay equals the launches that it was captured from, and a row in company the same row alone. cuDNN measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.sections import company
from benchmarks.gpu.subjects.lab import Lab

_REQUESTS = (1, 3)


def cases(report: Report) -> Iterator[Case]:
    for exact in (False, True):
        mode = "exact" if exact else "fast"
        yield Case(f"replay {mode}", partial(company.replay, report, _REQUESTS, exact, False, False))
        yield Case(f"company {mode}", partial(_company, report, exact))


def _company(report: Report, exact: bool) -> None:
    company.company(report, Lab(report, "small", max(_REQUESTS), exact=exact, measure=False), _REQUESTS, exact)
