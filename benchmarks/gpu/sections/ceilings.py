"""The two rates that bound every kernel: a large matrix product and a large copy, each held for five seconds."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.frame.timing import by_events, on_cpu

_HELD = 5.0  # seconds: power and temperature settle, and with them the clock
_CLOCKS = "clocks.sm,clocks.mem,power.draw,temperature.gpu"


def cases(report: Report) -> Iterator[Case]:
    yield Case("matmul float16", lambda: _matmul(report, torch.float16, held=True))
    yield Case("copy", lambda: _copy(report))
    yield Case("matmul bfloat16", lambda: _matmul(report, torch.bfloat16, held=False))
    yield Case("launch", lambda: _launch(report))


def _matmul(report: Report, dtype: torch.dtype, *, held: bool) -> None:
    side = 64 if report.dry else 8192
    # Random data: zeros ran 13% faster than data on an H200.
    a, b = (torch.randn(side, side, device=report.device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    _measure(report, "matmul", f"{str(dtype)[6:]} {side}^3", lambda: torch.mm(a, b, out=out), 2 * side**3, held)


def _copy(report: Report) -> None:
    count = 1 << (16 if report.dry else 30)
    source = torch.randint(0, 1 << 30, (count,), dtype=torch.int32, device=report.device)  # 4 GiB
    target = torch.empty_like(source)
    _measure(report, "copy", f"{source.nbytes} bytes", lambda: target.copy_(source), 2 * source.nbytes, True)


def _measure(report: Report, what: str, case: str, run: Callable[[], object], amount: float, held: bool) -> None:
    unit, scale = ("TFLOP/s", 1e12) if what == "matmul" else ("GB/s", 1e9)
    report.row(what, case, "burst", unit, [amount / s / scale for s in by_events(run, seconds=0.1)])
    if not held:
        return
    with _Clocks(report.dry) as clocks:
        rates, start = [], time.monotonic()
        while time.monotonic() - start < (0.01 if report.dry else _HELD):
            seconds = on_cpu(run) if report.dry else by_events(run, seconds=0.2)
            rates += [amount / s / scale for s in seconds]
    late = rates[len(rates) // 2 :]  # the second half: the clock has settled
    report.row(what, case, "held", unit, late, note=clocks.note)


def _launch(report: Report) -> None:
    """Time one launch, eagerly and in a graph: the floor of a small operation."""
    from benchmarks.gpu.frame.timing import in_graph

    x = torch.randn(1, device=report.device)
    report.time("launch", "one number", "eager", by_events(lambda: x.add_(1)))
    report.time("launch", "one number", "graph", in_graph([lambda: x.add_(1)] * 64))


class _Clocks:
    """Takes nvidia-smi's samples while something runs; nothing where it is not there."""

    def __init__(self, dry: bool) -> None:
        self._dry, self._process, self.note = dry, None, ""

    def __enter__(self) -> _Clocks:
        command = ["nvidia-smi", "--id=0", f"--query-gpu={_CLOCKS}", "--format=csv,noheader,nounits", "-lms", "250"]
        if not self._dry:
            try:
                self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            except OSError:
                self.note = "no nvidia-smi: no clocks"
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        lines = self._process.communicate()[0].splitlines()
        samples = [[float(v) for v in line.split(",")] for line in lines if _numbers(line)]
        if samples:
            spans = [f"{min(column):.0f}..{max(column):.0f}" for column in zip(*samples, strict=True)]
            self.note = "SM {} MHz, memory {} MHz, {} W, {} C".format(*spans)


def _numbers(line: str) -> bool:
    try:
        return len([float(value) for value in line.split(",")]) == 4
    except ValueError:
        return False
