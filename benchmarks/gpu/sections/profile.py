"""What is in the way: the kernels of one replayed UNet pass, by time. Rows of the table, and a text file beside it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.frame import ahead
from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.sections.unet import graph_of
from benchmarks.gpu.subjects.networks import inputs, ours, unet, unet_spec
from model.ops import PLAIN

_REPLAYS = 5
_SHOWN = 40


def cases(report: Report) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    yield ahead.case(report, "networks")
    for mode, rows in (("ours", 2), ("eager", 2)) if report.dry else (("ours", 2), ("ours", 32), ("eager", 2)):
        yield Case(f"SD 1.5 {mode} {rows} rows", partial(_profile, report, mode, rows))


def _profile(report: Report, mode: str, rows: int) -> None:
    net = unet(report, "SD 1.5", ops=PLAIN if mode == "eager" else ours(report))
    fixed = inputs(report, unet_spec(report, "SD 1.5"), rows, seed=0)
    run = (lambda: net(*fixed)) if report.dry else graph_of(net, fixed)[0]
    run()
    activity = ProfilerActivity.CPU if report.dry else ProfilerActivity.CUDA
    with profile(activities=[activity]) as profiler:
        for _ in range(1 if report.dry else _REPLAYS):
            run()
        if not report.dry:
            torch.cuda.synchronize()
    times: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    for event in profiler.events() or []:
        on_device = "CUDA" in str(event.device_type)
        if on_device or report.dry:
            times[event.name] += event.self_device_time_total if on_device else event.self_cpu_time_total  # us
            counts[event.name] += 1
    replays = 1 if report.dry else _REPLAYS
    total, case = sum(times.values()) / replays, f"{rows} rows"
    report.row("all kernels", case, mode, "us", [total], note=f"{sum(counts.values()) // replays} launches")
    lines = [f"SD 1.5 {mode} {rows} rows: {total:.0f} us in {sum(counts.values()) // replays} kernels, of one replay"]
    for place, (name, took) in enumerate(sorted(times.items(), key=lambda item: -item[1])[:_SHOWN], 1):
        took, count = took / replays, counts[name] // replays
        lines.append(f"{place:3} {took:9.1f} us {took / max(total, 1e-9):6.1%} {count:5} x  {name}")
        share = f"{took / max(total, 1e-9):.1%} in {count} launches"
        report.row(f"kernel {place}", case, mode, "us", [took], note=f"{share}: {name[:160]}")
    for path in report.files:
        with path.with_name(f"{path.stem}-profile.txt").open("a") as file:
            file.write("\n".join([report.stamp["date"], *lines, "", ""]))
