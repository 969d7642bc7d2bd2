"""A minute of random requests that join and leave, each decoded: nothing grows, everything stays a number."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.frame import ahead
from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.subjects.lab import Lab, random_request
from benchmarks.gpu.subjects.networks import our_kernels, ours, vae

_SECONDS = 60.0
# Of host memory over the last three quarters of a minute: an allocator still settles a little, a leak of a buffer of
# one seat a request would be hundreds of MB.
_MOST_MB = 64.0


def cases(report: Report) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    yield ahead.case(report, "networks")
    yield Case("SD 1.5", partial(_soak, report))


def _soak(report: Report) -> None:
    seats = 3 if report.dry else 16
    lab, rng = Lab(report, "SD 1.5", seats, buckets=(2, 8, 16, 32)), random.Random(0)
    decoder, kernels = vae(report, ops=ours(report)), our_kernels(report)
    begin, length = time.monotonic(), 0.2 if report.dry else _SECONDS
    live: set[int] = set()
    pictures, broken, steps, early = 0, 0, 0, _memory(report)
    settled = False
    while time.monotonic() - begin < length:
        for seat in set(range(seats)) - live:
            if rng.random() < 0.5:
                lab.sit(seat, random_request(rng, pictures + seat, 2 if report.dry else 8))
                live.add(seat)
        if not live:
            continue
        lab.stepper.step(sorted(live))
        steps += 1
        for seat in [seat for seat in live if lab.stepper.finished(seat)]:
            x = torch.from_numpy(lab.latents(seat))[None].to(report.device, report.dtype)
            pixels, flags = kernels.to_uint8(decoder(x.contiguous(memory_format=torch.channels_last)))
            broken += int(flags.bool().any()) or int(not np.any(pixels.cpu().numpy()))
            pictures += 1
            lab.stepper.leave(seat)
            live.remove(seat)
        if not settled and time.monotonic() - begin > length / 4:
            early, settled = _memory(report), True
    grown = {name: after - early[name] for name, after in _memory(report).items()}
    report.row("soak", "SD 1.5", "steps", "", [float(steps)], note=f"in {length:.0f} s, {pictures} pictures")
    report.expect(broken == 0, "soak", "SD 1.5", "broken", float(broken), "pictures that are no numbers, or black")
    for name, megabytes in grown.items():
        report.expect(
            report.dry or megabytes <= _MOST_MB, "soak growth", "SD 1.5", name, megabytes, "MB after a quarter"
        )


def _memory(report: Report) -> dict[str, float]:
    """Return the megabytes in use."""
    megabytes = {}
    status = Path("/proc/self/status").read_text()
    megabytes["host"] = next(int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("VmRSS"))
    if not report.dry:
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        megabytes["card"], megabytes["torch"] = (total - free) / 1e6, torch.cuda.memory_allocated() / 1e6
    return megabytes
