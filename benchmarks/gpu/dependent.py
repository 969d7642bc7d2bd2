"""A UNet's pass whose kernels are set up while the ones before them run (kernels/dependent.py), beside one without.

The same network, buffers and algorithms, captured in both ways. A wait that comes too late would show as other bits:
two inputs alternate, so that what is read too early is of the other one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.check import Check
from benchmarks.gpu.here import needed
from benchmarks.gpu.networks import TOLERANCE, Inputs, inputs, unet_spec
from benchmarks.gpu.operations import step_floor
from benchmarks.gpu.timing import by_events, captured, error, on_cpu
from model.unet import Unet

_REPLAYS = 20
MODES = ("ours, plain", "ours, dependent")


def compare(check: Check, net: Unet, name: str, rows: int) -> None:
    """`net` is ours, launching as usual. Rows: whether the bits are the same, both times, and what is gained."""
    dependent = needed("kernels.dependent", "dependent_launches")
    spec, case, what = unet_spec(check, name), f"{rows} rows", f"{name} dependent"
    flops, floor = step_floor(spec, rows, *check.ceilings())
    fixed, *fresh = (inputs(check, spec, rows, seed=seed) for seed in range(3))

    def switched() -> Tensor:
        with dependent():
            return net(*fixed)

    runs = [_replayed(check, run) for run in (lambda: net(*fixed), switched)]
    plain, other = (lambda values, run=run: _passed(run, fixed, values) for run in runs)
    right = [plain(values) for values in fresh]
    steady = all(torch.equal(plain(values), wanted) for values, wanted in zip(fresh, right, strict=True))
    count = 2 if check.dry else _REPLAYS if rows < 8 else _REPLAYS // 2
    made = [(other(fresh[i % 2]), right[i % 2]) for i in range(count)]
    unequal = sum(not torch.equal(got, wanted) for got, wanted in made)
    far = max(error(got, wanted) for got, wanted in made)
    if steady:
        check.expect(not unequal, what, case, "bits", unequal, f"of {count} replays differ from those without")
    else:
        check.expect(far < TOLERANCE, what, case, "bits", far, "without it, replays differ among themselves")
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(2):  # in turns: a card's clocks drift
        for (run, _), found in zip(runs, seconds, strict=True):
            found += on_cpu(run) if check.dry else by_events(run, seconds=0.25)
    medians = [
        check.time(name, case, mode, found, flops=flops, floor=floor)
        for mode, found in zip(MODES, seconds, strict=True)
    ]
    gain = 1e6 * (medians[0] - medians[1])
    check.row(what, case, "gain", "us", [gain], note=f"{gain / medians[0] / 1e4:.1f}% of a pass; negative: slower")


def _replayed(check: Check, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """A replay, and what it writes; on a CPU the run itself, which writes into a buffer."""
    if not check.dry:
        graph, out = captured(run)
        return graph.replay, out
    out = torch.empty_like(run())
    return lambda: out.copy_(run()), out


def _passed(run: tuple[Callable[[], object], Tensor], fixed: Inputs, values: Inputs) -> Tensor:
    for buffer, value in zip(fixed, values, strict=True):
        buffer.copy_(value)
    replay, out = run
    out.fill_(float("nan"))  # a replay that writes nothing shows
    replay()
    return out.clone()
