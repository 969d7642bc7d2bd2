"""The captured step: what it costs at 1, 4, 16 and 8 guided requests of 512x512, and the gap between two replays.

Whether it computes what it must: benchmarks/gpu/sections/company.py.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.gpu.frame import ahead
from benchmarks.gpu.frame.report import AbsentError, Case, Report
from benchmarks.gpu.frame.sections import LABORATORY
from benchmarks.gpu.frame.timing import by_events
from benchmarks.gpu.subjects.lab import Lab, Request
from benchmarks.gpu.subjects.networks import SCHEDULE, TOKENS, our_kernels, ours, text, vae
from benchmarks.gpu.subjects.operations import step_floor
from engines.seat import Sitting
from pipeline.noise import standard_normal
from pipeline.samplers import table

_BUCKETS = (2, 8, 16, 32)


class Labs:
    """Keeps the last lab: cases of one follow each other, and two of them would not be the memory of one."""

    def __init__(self, report: Report) -> None:
        self._report, self._key, self._lab = report, (), None

    def get(self, name: str, seats: int, *, exact: bool = False, every: bool = False) -> Lab:
        """Return the lab, kept or built. `every`: all buckets of a server, a minute or more; else _BUCKETS."""
        key = (name, seats, exact, every)
        if self._lab is None or self._key != key:
            self._lab = None
            start = time.monotonic()
            self._lab = Lab(self._report, name, seats, exact=exact, buckets=None if every else _BUCKETS)
            self._key = key
            mode = "exact" if exact else "fast"
            self._report.row(
                "build", name, mode, "s", [time.monotonic() - start], note=f"{seats} seats, capture and all"
            )
        return self._lab


def cases(report: Report) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    yield ahead.case(report, "networks")
    labs, seats = Labs(report), 3 if report.dry else 16

    def case(name: str, run: Callable[..., None], *arguments: object) -> Case:
        return Case(f"SD 1.5 {name}", partial(run, report, labs, *arguments), seconds=LABORATORY)

    for n in (1, 3) if report.dry else (1, 4, 16):
        yield case(f"step {n}", step, "SD 1.5", seats, n, False)
    yield case("gap", _gap, seats)
    yield case("picture", _picture, seats)
    yield Case("SD 1.5 memory", partial(_memory, report))
    if not report.dry:
        yield case("step 8", step, "SD 1.5", seats, 8, False)


def _synchronize(report: Report) -> None:
    if not report.dry:
        torch.cuda.synchronize()


def step(report: Report, labs: Labs, name: str, seats: int, n: int, exact: bool) -> None:
    """Time a step of the host's loop, and a replay alone."""
    lab, what, case = labs.get(name, seats, exact=exact), f"{name} step", f"{n} requests"
    mode = "exact" if exact else "fast"
    flops, floor = step_floor(lab.spec, 2 * n, *report.ceilings(), copies=lab.copies)
    who, count = list(range(n)), 2 if report.dry else max(6, 24 // n)
    for seat in who:
        lab.sit(seat, Request("dpmpp_2m", 50, 7.5, seat))
    for _ in range(3):
        lab.stepper.step(who)
    _synchronize(report)
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(count):
        lab.stepper.step(who)
    _synchronize(report)
    took, busy = time.perf_counter() - start, time.process_time() - busy
    report.time(
        what, case, f"{mode} loop", [took / count], flops=flops, floor=floor, note=f"{count} steps, host and all"
    )
    report.row(
        "host", f"{name} {case}", mode, "ms", [1e3 * busy / count], note=f"CPU time a step; {busy / took:.0%} of it"
    )
    if not exact:
        bucket = lab.stepper._live  # what the loop has replayed
        with lab.stream.here():
            seconds = by_events(lab.stepper._replays[bucket], seconds=0.4, most=60)
        note = f"bucket of {bucket.rows} rows{', twins' if bucket.twins else ''}"
        report.time(what, case, "replay", seconds, flops=flops, floor=floor, note=note)
    for seat in who:
        lab.stepper.leave(seat)


def _gap(report: Report, labs: Labs, seats: int) -> None:
    """Time the gap from the last kernel of a replay to the first of the next, in the loop that serves."""
    if report.dry:
        raise AbsentError("a CPU has no gaps between replays")
    from torch.profiler import ProfilerActivity, profile

    lab, steps = labs.get("SD 1.5", seats), 8
    lab.sit(0, Request("dpmpp_2m", 50, 7.5, 0))
    for _ in range(3):
        lab.stepper.step([0])
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            lab.stepper.step([0])
        torch.cuda.synchronize()
    kernels = [e for e in profiler.events() or [] if "CUDA" in str(e.device_type)]
    spans = sorted((e.time_range.start, e.time_range.end) for e in kernels)
    if len(spans) < steps:
        raise AbsentError(f"torch's profiler saw {len(spans)} kernels of {steps} steps")
    gaps = [max(0.0, b[0] - a[1]) for a, b in itertools.pairwise(spans)]
    each, rest = divmod(len(spans), steps)
    note = f"{each} kernels a step"
    if rest:  # not the same number in each: the widest gaps then, which may be inside a replay
        between, note = sorted(gaps)[-(steps - 1) :], f"{len(spans)} kernels in {steps} steps: the widest gaps"
    else:
        between = [gaps[each * i - 1] for i in range(1, steps)]
    report.row("gap", "SD 1.5, 1 request", "replay", "us", between, note=note)
    inside = (sum(gaps) - sum(between)) / steps
    report.row("gap", "SD 1.5, 1 request", "inside", "us", [inside], note="nothing runs, sum over a step")
    lab.stepper.leave(0)


def _picture(report: Report, labs: Labs, seats: int) -> None:
    """Time a picture alone, prompt to bytes on the host: text, 30 evaluations, decoder, uint8."""
    lab, kernels, device = labs.get("SD 1.5", seats), our_kernels(report), report.device
    encoder, decoder = text(report), vae(report, ops=ours(report))
    ids = torch.randint(0, 49000, (2, TOKENS), device=device)

    steps = 3 if report.dry else 30
    run, noise = table(SCHEDULE, "dpmpp_2m", steps), standard_normal(0, lab.shape)

    def picture() -> bool:
        encoded = encoder(ids)
        contexts = (encoded[0] if isinstance(encoded, tuple) else encoded).float().cpu().numpy()
        lab.stepper.sit(0, Sitting(run, noise, contexts[0], contexts[1], 7.5))
        for _ in range(steps):
            lab.stepper.step([0])
        latents = torch.from_numpy(lab.latents(0))[None].to(device, report.dtype)
        pixels, flags = kernels.to_uint8(decoder(latents.contiguous(memory_format=torch.channels_last)))
        pixels = pixels.cpu()
        lab.stepper.leave(0)
        return not bool(flags.any()) and int(pixels.float().std() > 0) == 1

    good = picture()
    report.expect(good, "SD 1.5 picture", f"{steps} steps", "finite", float(good))
    seconds = []
    for _ in range(1 if report.dry else 5):
        start = time.perf_counter()
        picture()
        seconds.append(time.perf_counter() - start)
    report.time("SD 1.5 picture", f"{steps} steps", "alone", seconds, note="text and decoder launched, not captured")


def _memory(report: Report) -> None:
    if report.dry:
        raise AbsentError("a CPU's memory is not counted")
    gib = [torch.cuda.max_memory_allocated() / 2**30]
    report.row("memory", "SD 1.5, 16 seats", "peak", "GiB", gib, note="allocated by torch, weights and all")
    used = (torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0]) / 2**30
    report.row("memory", "SD 1.5, 16 seats", "card", "GiB", [used], note="in use on the card, graphs and context too")
