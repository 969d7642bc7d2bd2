"""torch.compile at its best settings (max-autotune, channels_last, cudnn.benchmark) of the SD 1.5 UNet.

One compilation takes minutes: two rows first, and what was not done when time was up is told.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.frame.timing import by_events, captured, error, on_cpu
from benchmarks.gpu.subjects.networks import TOLERANCE, inputs, unet, unet_spec
from benchmarks.gpu.subjects.operations import step_floor


def cases(report: Report) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    # The default mode takes about a minute and is a figure to fall back on; then the best, two rows and 32.
    for rows, mode in ((2, "default"), (2, "max-autotune"), (32, "max-autotune"))[: 1 if report.dry else None]:
        yield Case(f"SD 1.5 {rows} rows {mode}", partial(_measure, report, rows, mode))


def _measure(report: Report, rows: int, mode: str) -> None:
    net, spec = unet(report, "SD 1.5"), unet_spec(report, "SD 1.5")
    fixed, case, start = inputs(report, spec, rows, seed=0), f"{rows} rows", time.monotonic()
    flops, floor = step_floor(spec, rows, *report.ceilings())
    right = net(*fixed).clone()
    if report.dry:
        run = torch.compile(net, fullgraph=True, dynamic=False, backend="aot_eager")
    else:
        # Without the graphs of torch.compile's own: ours is captured around it, as around everything else here.
        inside = "max-autotune-no-cudagraphs" if mode == "max-autotune" else mode
        run = torch.compile(net, fullgraph=True, dynamic=False, mode=inside)
    got = run(*fixed)
    far = error(got, right)
    report.expect(far < TOLERANCE, "SD 1.5 error", case, f"compile {mode}", far, "to eager")
    note = f"compiled in {time.monotonic() - start:.0f} s"
    if report.dry:
        seconds = on_cpu(lambda: run(*fixed))
    else:
        report.time(
            "SD 1.5 launched", case, f"compile {mode}", by_events(lambda: run(*fixed)), flops=flops, floor=floor
        )
        graph, _ = captured(lambda: run(*fixed))
        seconds = by_events(graph.replay, seconds=0.6)
    report.time("SD 1.5", case, f"compile {mode}", seconds, flops=flops, floor=floor, note=note)
