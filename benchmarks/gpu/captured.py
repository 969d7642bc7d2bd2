"""The captured step: what it costs, the gap between two replays, and that it computes what it must.

Replays equal launches; rows in company equal the row alone (exact: bit for bit); random joins and leaves equal solo
runs. SD 1.5 first, at 1, 4, 8 and 16 guided requests of 512x512, beside the floor.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.check import AbsentError, Case, Check
from benchmarks.gpu.lab import F32, Lab, Request, apart, random_request
from benchmarks.gpu.networks import SCHEDULE, TOKENS, our_kernels, ours, text, vae
from benchmarks.gpu.operations import step_floor
from benchmarks.gpu.timing import by_events
from pipeline.noise import standard_normal
from pipeline.samplers import table

_REQUESTS = (1, 4, 8, 16)
_BUCKETS = (2, 8, 16, 32)
_LEAST_DECIBELS = 50.0  # one evaluation in buckets of other sizes: docs/design.md, --pixels fast
# A whole run of up to 15 evaluations multiplies what one differs by; measured nowhere yet, so wide.
_LEAST_AFTER_A_RUN = 25.0
_JOINS = 1000


class _Labs:
    """The last one is kept: cases of one lab follow each other, and two of them would not be the memory of one."""

    def __init__(self, check: Check) -> None:
        self._check, self._key, self._lab = check, (), None

    def get(self, name: str, seats: int, *, exact: bool = False, every: bool = False) -> Lab:
        """`every`: all buckets that a server captures, which takes a minute or more; else those of _REQUESTS."""
        key = (name, seats, exact, every)
        if self._lab is None or self._key != key:
            self._lab = None
            start = time.monotonic()
            self._lab = Lab(self._check, name, seats, exact=exact, buckets=None if every else _BUCKETS)
            self._key = key
            mode = "exact" if exact else "fast"
            self._check.row(
                "build", name, mode, "s", [time.monotonic() - start], note=f"{seats} seats, capture and all"
            )
        return self._lab


def cases(check: Check) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    labs, seats = _Labs(check), 3 if check.dry else 16
    counts = (1, 3) if check.dry else _REQUESTS
    for n in counts:
        yield Case(f"SD 1.5 step {n}", partial(_step, check, labs, "SD 1.5", seats, n, False))
    yield Case("SD 1.5 picture", partial(_picture, check, labs, seats))
    yield Case("SD 1.5 memory", partial(_memory, check))
    # After what has a target: a profiler leaves hooks behind, and may miss kernels of graphs that are older than it.
    yield Case("SD 1.5 gap", partial(_gap, check, labs, seats))
    yield Case("SD 1.5 company fast", partial(_company, check, labs, seats, counts, False))
    yield Case("small replay", partial(_replay, check))
    for exact in (True, False):
        mode = "exact" if exact else "fast"
        yield Case(f"small joins {mode}", partial(_joins, check, exact))
    few = 2 if check.dry else 4
    yield Case("SD 1.5 company exact", partial(_company, check, labs, few, (2, few), True))
    for n in (1, few):
        yield Case(f"SD 1.5 step {n} exact", partial(_step, check, labs, "SD 1.5", few, n, True))
    for n in counts:
        yield Case(f"SD 2.1 step {n}", partial(_step, check, labs, "SD 2.1", seats, n, False))
    every = tuple(range(1, seats + 1))
    yield Case("SD 1.5 company in every bucket", partial(_company, check, labs, seats, every, False, every=True))


def _synchronize(check: Check) -> None:
    if not check.dry:
        torch.cuda.synchronize()


def _step(check: Check, labs: _Labs, name: str, seats: int, n: int, exact: bool) -> None:
    """Of the host's loop, and of a replay alone."""
    lab, what, case = labs.get(name, seats, exact=exact), f"{name} step", f"{n} requests"
    mode = "exact" if exact else "fast"
    flops, floor = step_floor(lab.spec, 2 * n, *check.ceilings(), copies=2)  # they are guided, and so twins
    who, count = list(range(n)), 2 if check.dry else max(6, 24 // n)
    for seat in who:
        lab.sit(seat, Request("dpmpp_2m", 50, 7.5, seat))
    for _ in range(3):
        lab.stepper.step(who)
    _synchronize(check)
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(count):
        lab.stepper.step(who)
    _synchronize(check)
    took, busy = time.perf_counter() - start, time.process_time() - busy
    check.time(
        what, case, f"{mode} loop", [took / count], flops=flops, floor=floor, note=f"{count} steps, host and all"
    )
    check.row(
        "host", f"{name} {case}", mode, "ms", [1e3 * busy / count], note=f"CPU time a step; {busy / took:.0%} of it"
    )
    if not exact:
        bucket = lab.stepper._live  # what the loop has replayed
        with lab.stream.here():
            seconds = by_events(lab.stepper._replays[bucket], seconds=0.4, most=60)
        note = f"bucket of {bucket.rows} rows{', twins' if bucket.twins else ''}"
        check.time(what, case, "replay", seconds, flops=flops, floor=floor, note=note)
    for seat in who:
        lab.stepper.leave(seat)


def _gap(check: Check, labs: _Labs, seats: int) -> None:
    """From the last kernel of a replay to the first of the next, of the loop that serves."""
    if check.dry:
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
    found = [e for e in profiler.events() or [] if "CUDA" in str(e.device_type)]
    spans = sorted((e.time_range.start, e.time_range.end) for e in found)
    if len(spans) < steps:
        raise AbsentError(f"torch's profiler saw {len(spans)} kernels of {steps} steps")
    gaps = [max(0.0, b[0] - a[1]) for a, b in itertools.pairwise(spans)]
    each, rest = divmod(len(spans), steps)
    note = f"{each} kernels a step"
    if rest:  # not the same number in each: the widest gaps then, which may be inside a replay
        between, note = sorted(gaps)[-(steps - 1) :], f"{len(spans)} kernels in {steps} steps: the widest gaps"
    else:
        between = [gaps[each * i - 1] for i in range(1, steps)]
    check.row("gap", "SD 1.5, 1 request", "replay", "us", between, note=note)
    inside = (sum(gaps) - sum(between)) / steps
    check.row("gap", "SD 1.5, 1 request", "inside", "us", [inside], note="nothing runs, sum over a step")
    lab.stepper.leave(0)


def _picture(check: Check, labs: _Labs, seats: int) -> None:
    """Prompt to bytes on the host, alone: text, 30 evaluations, decoder, uint8."""
    lab, kernels, device = labs.get("SD 1.5", seats), our_kernels(check), check.device
    encoder, decoder = text(check), vae(check, ops=ours(check))
    ids = torch.randint(0, 49000, (2, TOKENS), device=device)

    steps = 3 if check.dry else 30
    run, noise = table(SCHEDULE, "dpmpp_2m", steps), standard_normal(0, lab.shape)

    def picture() -> bool:
        made = encoder(ids)
        contexts = (made[0] if isinstance(made, tuple) else made).float().cpu().numpy()
        lab.stepper.sit(0, run, noise, contexts[0], contexts[1], 7.5)
        for _ in range(steps):
            lab.stepper.step([0])
        latents = torch.from_numpy(lab.latents(0))[None].to(device, check.dtype)
        pixels, flags = kernels.to_uint8(decoder(latents.contiguous(memory_format=torch.channels_last)))
        pixels = pixels.cpu()
        lab.stepper.leave(0)
        return not bool(flags.any()) and int(pixels.float().std() > 0) == 1

    good = picture()
    check.expect(good, "SD 1.5 picture", f"{steps} steps", "finite", float(good))
    seconds = []
    for _ in range(1 if check.dry else 5):
        start = time.perf_counter()
        picture()
        seconds.append(time.perf_counter() - start)
    check.time("SD 1.5 picture", f"{steps} steps", "alone", seconds, note="text and decoder launched, not captured")


def _memory(check: Check) -> None:
    if check.dry:
        raise AbsentError("a CPU's memory is not counted")
    gib = [torch.cuda.max_memory_allocated() / 2**30]
    check.row("memory", "SD 1.5, 16 seats", "peak", "GiB", gib, note="allocated by torch, weights and all")
    used = (torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0]) / 2**30
    check.row("memory", "SD 1.5, 16 seats", "card", "GiB", [used], note="in use on the card, graphs and context too")


def _company(
    check: Check, labs: _Labs, seats: int, counts: tuple[int, ...], exact: bool, *, every: bool = False
) -> None:
    """One evaluation of n requests together, for each n of `counts`, against each of them alone."""
    lab = labs.get("SD 1.5", seats, exact=exact, every=every)
    requests = [Request("ddim", 20, 7.5 if i % 3 else 1.0, i) for i in range(max(counts))]
    alone = [lab.evaluations([request], 1)[0] for request in requests]
    for n in counts:
        worst = min(apart(got, alone[i]) for i, got in enumerate(lab.evaluations(requests[:n], 1)))
        good = worst == 999.0 if exact else worst >= _LEAST_DECIBELS
        note = "equal" if worst == 999.0 else "dB of the worst; " + ("equal bits" if exact else "at least 50")
        check.expect(good, "SD 1.5 company", f"{n} requests", "exact" if exact else "fast", worst, note)


def _replay(check: Check) -> None:
    """The same evaluations replayed and launched, for every bucket, twins and others."""
    replayed, launched = Lab(check, "small", 8), Lab(check, "small", 8, eager=True)
    for n, guided in itertools.product((1, 3) if check.dry else range(1, 9), (True, False)):
        requests = [Request("dpmpp_2m_sde", 6, 5.0 if i or guided else 1.0, i) for i in range(n)]
        pairs = zip(replayed.evaluations(requests, 3), launched.evaluations(requests, 3), strict=True)
        worst = min(apart(got, right) for got, right in pairs)
        note, mode = "equal" if worst == 999.0 else "dB", f"small{'' if guided else ', one unguided'}"
        # Another algorithm of a library may be chosen for each: then not equal, but near.
        check.expect(worst >= _LEAST_DECIBELS, "replay equals launch", f"{n} requests", mode, worst, note)


def _joins(check: Check, exact: bool) -> None:
    """Random requests that join and leave between any two steps, against the same ones alone."""
    total, most = (4, 3) if check.dry else (_JOINS, 8)
    lab, rng, share = Lab(check, "small", 8, exact=exact), random.Random(0), 0.5 if exact else 0.7
    until = time.monotonic() + share * max(check.seconds_left, 4) * (0.3 if check.dry else 0.5)
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
    check.expect(
        worst >= (999.0 if exact else _LEAST_AFTER_A_RUN), "joins and leaves", f"{total} requests", mode, worst, note
    )


def _mixed(lab: Lab, requests: list[Request], rng: random.Random) -> tuple[dict[int, F32], int]:
    """Latents of those that were not made to leave, by index, and how many left."""
    waiting, live, made, left = list(range(len(requests))), dict[int, int](), dict[int, F32](), 0
    while waiting or live:
        for seat in set(range(lab.stepper.seats)) - live.keys():
            if waiting and rng.random() < 0.5:
                live[seat] = waiting.pop(0)
                lab.sit(seat, requests[live[seat]])
        if live:
            lab.stepper.step(sorted(live))
        for seat, index in list(live.items()):
            if lab.stepper.finished(seat):
                made[index] = lab.latents(seat)
            elif rng.random() < 0.03:
                left += 1
            else:
                continue
            lab.stepper.leave(seat)
            del live[seat]
    return made, left
