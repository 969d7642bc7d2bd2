"""That the captured step computes what it must: replays equal launches, and rows in company the row alone.

Exact pixels: bit for bit; fast ones: nearly. Random joins and leaves against solo runs; then the price of exact steps,
SD 2.1, and every bucket that a server captures.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from benchmarks.gpu.frame import ahead
from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.frame.sections import LABORATORY
from benchmarks.gpu.sections.captured import Labs, step
from benchmarks.gpu.subjects.lab import F32, Lab, Request, apart, random_request

_LEAST_DECIBELS = 50.0  # one evaluation in buckets of other sizes: docs/design.md, --pixels fast
# A whole run of up to 15 evaluations multiplies what one differs by; measured nowhere yet, so wide.
LEAST_AFTER_A_RUN = 25.0
_JOINS = 1000


def cases(report: Report) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    yield ahead.case(report, "company")
    labs, seats, few = Labs(report), 3 if report.dry else 16, 2 if report.dry else 4
    counts = (1, 3) if report.dry else (1, 4, 8, 16)
    yield Case("SD 1.5 company fast", partial(_company, report, labs, seats, counts, False), LABORATORY)
    for exact, twins in ((False, False), (False, True), (True, False)):
        name = f"small replay {'exact' if exact else 'fast'}{', twins' if twins else ''}"
        small = (1, 3) if report.dry else range(1, 9)
        yield Case(name, partial(replay, report, small, exact, twins), LABORATORY)
    for exact in (True, False):
        yield Case(f"small joins {'exact' if exact else 'fast'}", partial(_joins, report, exact), LABORATORY)
    yield Case("SD 1.5 company exact", partial(_company, report, labs, few, (2, few), True), LABORATORY)
    for n in (1, few):
        yield Case(f"SD 1.5 step {n} exact", partial(step, report, labs, "SD 1.5", few, n, True), LABORATORY)
    for n in counts:
        yield Case(f"SD 2.1 step {n}", partial(step, report, labs, "SD 2.1", seats, n, False), LABORATORY)
    all_of_them = partial(_company, report, labs, seats, range(1, seats + 1), False, True)
    yield Case("SD 1.5 company in every bucket", all_of_them, LABORATORY)


def _company(report: Report, labs: Labs, seats: int, counts: Sequence[int], exact: bool, every: bool = False) -> None:
    company(report, labs.get("SD 1.5", seats, exact=exact, every=every), counts, exact)


def company(report: Report, lab: Lab, counts: Sequence[int], exact: bool) -> None:
    """Compare one evaluation of n requests together, for each n of `counts`, with each of them alone."""
    requests = [Request("ddim", 20, 7.5 if i % 3 else 1.0, i) for i in range(max(counts))]
    alone = [lab.evaluations([request], 1)[0] for request in requests]
    for n in counts:
        worst = min(apart(got, alone[i]) for i, got in enumerate(lab.evaluations(requests[:n], 1)))
        good = worst == 999.0 if exact else worst >= _LEAST_DECIBELS
        note = "equal" if worst == 999.0 else "dB of the worst; " + ("equal bits" if exact else "at least 50")
        report.expect(good, f"{lab.name} company", f"{n} requests", "exact" if exact else "fast", worst, note)


def replay(report: Report, counts: Sequence[int], exact: bool, twins: bool, measure: bool = True) -> None:
    """Compare evaluations of the small network replayed and launched, with and without an unguided request."""
    replayed, launched = (
        Lab(report, "small", max(counts), exact=exact, twins=twins, measure=measure, eager=eager)
        for eager in (False, True)
    )
    for n, guided in itertools.product(counts, (True, False)):
        requests = [Request("dpmpp_2m_sde", 6, 5.0 if i or guided else 1.0, i) for i in range(n)]
        pairs = zip(replayed.evaluations(requests, 3), launched.evaluations(requests, 3), strict=True)
        worst = min(apart(got, right) for got, right in pairs)
        note = "equal" if worst == 999.0 else "dB"
        mode = ", ".join(["exact" if exact else "fast", *["twins"] * twins, *["one unguided"] * (not guided)])
        # Another algorithm of a library may be chosen for each: then not equal, but near.
        good = worst >= (999.0 if exact else _LEAST_DECIBELS)
        report.expect(good, "replay equals launch", f"{n} requests", mode, worst, note)


def _joins(report: Report, exact: bool) -> None:
    """Compare random requests that join and leave between any two steps with the same ones alone."""
    total, most = (4, 3) if report.dry else (_JOINS, 8)
    lab, rng, share = Lab(report, "small", 8, exact=exact), random.Random(0), 0.5 if exact else 0.7
    until = time.monotonic() + share * max(report.seconds_left, 4) * (0.3 if report.dry else 0.5)
    done, worst, left = 0, 999.0, 0
    while done < total and time.monotonic() < until:
        requests = [random_request(rng, done + i, most) for i in range(min(40, total - done))]
        mixed, gone = _mixed(lab, requests, rng)
        left += gone
        for index, x in mixed.items():
            worst = min(worst, apart(x, lab.alone(requests[index])))
        done += len(requests)
    mode = "exact" if exact else "fast"
    note = f"dB of the worst of {done} requests, {left} of them left early" + ("" if done == total else "; time was up")
    report.expect(
        worst >= (999.0 if exact else LEAST_AFTER_A_RUN), "joins and leaves", f"{total} requests", mode, worst, note
    )


def _mixed(lab: Lab, requests: list[Request], rng: random.Random) -> tuple[dict[int, F32], int]:
    """Return the latents of those that were not made to leave, by index, and how many left."""
    waiting, live, latents, left = list(range(len(requests))), dict[int, int](), dict[int, F32](), 0
    while waiting or live:
        for seat in set(range(lab.stepper.seats)) - live.keys():
            if waiting and rng.random() < 0.5:
                live[seat] = waiting.pop(0)
                lab.sit(seat, requests[live[seat]])
        if live:
            lab.stepper.step(sorted(live))
        for seat, index in list(live.items()):
            if lab.stepper.finished(seat):
                latents[index] = lab.latents(seat)
            elif rng.random() < 0.03:
                left += 1
            else:
                continue
            lab.stepper.leave(seat)
            del live[seat]
    return latents, left
