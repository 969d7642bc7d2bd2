"""The UNet's forward pass of SD 1.5 and SD 2.1 at 512x512, torch's operations and ours, each as a CUDA graph.

Each is compared with the same weights in float32, a replay with a plain run, and a row in company with the row alone.
Other forms of ours: benchmarks/gpu/sections/forms.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.frame import ahead
from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.frame.timing import by_events, captured, decibels, error, on_cpu
from benchmarks.gpu.subjects.networks import TOLERANCE, Inputs, inputs, ours, unet, unet_spec
from benchmarks.gpu.subjects.operations import step_floor
from model.ops import PLAIN
from model.unet import Unet

ROWS = (2, 32)  # of what has a gate; then the others
_MODES = ("ours", "eager")
# Fields of engines.cuda.choices.Choices that make a form of section `forms`.
CHOICES: dict[str, dict[str, Any]] = {
    "ours, fused geglu": {"geglu": {None: "fused"}},
    "ours, cudnn attention": {"attention": {None: "cudnn"}},
    "ours, flash attention": {"attention": {None: "flash"}},
}
_LEAST_DECIBELS = 50.0  # of a row in company against the row alone, where bits differ (docs/design.md, --pixels fast)


class Nets:
    """Keeps one network at a time: building one takes a second, 1.7 GB."""

    def __init__(self, report: Report) -> None:
        self._report, self._key, self._net = report, ("", ""), None

    def get(self, name: str, mode: str) -> Unet:
        mode = mode.removesuffix(", twins")
        if self._key != (name, mode) or self._net is None:
            self._net = None
            ops = PLAIN if mode == "eager" else ours(self._report, **CHOICES.get(mode, {}))
            self._net = unet(self._report, name, ops=ops, residuals="apart" not in mode)
            self._key = (name, mode)
        return self._net


def cases(report: Report) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    yield ahead.case(report, "networks")
    nets, right = Nets(report), {}
    for name, counts in (("SD 1.5", ROWS), ("SD 2.1", (2, 32, 8, 16)), ("SD 1.5", (8, 16))):
        if name not in right:
            yield Case(f"{name} float32", partial(reference, report, name, right))
        for mode in _MODES:
            yield from cases_of(report, nets, name, mode, right, counts)


def cases_of(
    report: Report, nets: Nets, name: str, mode: str, right: dict[str, Tensor], counts: Sequence[int]
) -> Iterator[Case]:
    """Yield the cases of one form: its error, to what `reference` left in `right`, and its speed by rows."""
    yield Case(f"{name} {mode} error", partial(_error, report, nets, name, mode, right))
    for rows in counts[: 1 if report.dry else None]:
        yield Case(f"{name} {mode} {rows} rows", partial(_speed, report, nets, name, mode, rows))


def reference(report: Report, name: str, right: dict[str, Tensor]) -> None:
    """Compute two rows, and two that are twins. Nothing of it is timed, so cuDNN measures no algorithms for it."""
    torch.backends.cudnn.benchmark = False
    net = unet(report, name, dtype=torch.float32)  # torch's defaults: no tf32 in products, so none in convolutions
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    latents, timestep, context = _given(report, name, "", 2, seed=1)
    right[name] = net(latents.float(), timestep, context.float()).cpu()
    latents, timestep = (torch.cat([x[:1], x[:1]]) for x in (latents, timestep))
    right[f"{name}, twins"] = net(latents.float(), timestep, context.float()).cpu()
    torch.backends.cudnn.benchmark = True


def _error(report: Report, nets: Nets, name: str, mode: str, right: dict[str, Tensor]) -> None:
    run = _forward(nets.get(name, mode), mode)
    got, wanted = run(*_given(report, name, mode, 2, seed=1)).float().cpu(), name + ", twins" * ("twins" in mode)
    if wanted not in right:
        finite = bool(got.isfinite().all())
        report.expect(finite, name, "2 rows", mode, float("nan"), "no float32 reference; are all numbers finite?")
        return
    far = error(got, right[wanted])
    report.expect(far < TOLERANCE, f"{name} error", "2 rows", mode, far, f"to float32; tolerance {TOLERANCE:g}")


def _speed(report: Report, nets: Nets, name: str, mode: str, rows: int) -> None:
    run, case = _forward(nets.get(name, mode), mode), f"{rows} rows"
    fixed, fresh = (_given(report, name, mode, rows, seed) for seed in (0, 1))
    flops, floor = step_floor(unet_spec(report, name), rows, *report.ceilings(), copies=rows // len(fixed[0]))

    def plain() -> Tensor:
        return run(*fixed)

    if report.dry:
        report.time(name, case, mode, on_cpu(plain), flops=flops, floor=floor)
    else:
        if rows == 2:
            report.time(name, case, f"{mode}, launched", by_events(plain), flops=flops, floor=floor)
        replay, out = graph_of(run, fixed)
        report.time(name, case, mode, by_events(replay, seconds=0.6), flops=flops, floor=floor)
        right = run(*fresh).clone()
        for buffer, values in zip(fixed, fresh, strict=True):
            buffer.copy_(values)
        out.fill_(float("nan"))  # a replay that writes nothing shows
        replay()
        torch.cuda.synchronize()
        same, far = torch.equal(out, right), error(out, right)
        report.expect(
            same or far < TOLERANCE, f"{name} replay", case, mode, far, "equal" if same else "not bit for bit"
        )
    _company(report, run, fresh, name, case, mode)


def _given(report: Report, name: str, mode: str, rows: int, seed: int) -> Inputs:
    """Make inputs for so many rows; of twins half as many latents and timesteps as contexts."""
    latents, timestep, context = inputs(report, unet_spec(report, name), rows, seed)
    n = rows // 2 if "twins" in mode else rows
    return latents[:n], timestep[:n], context


def _forward(net: Unet, mode: str) -> Callable[..., Tensor]:
    """Run the whole pass over inputs of a mode."""

    def twins(latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        shifts = net.time_shifts(timestep.repeat_interleave(2))
        return net.denoise(latents, shifts, net.context_kv(context), copies=2)

    return twins if "twins" in mode else net


def graph_of(net: Callable[..., Tensor], fixed: Inputs) -> tuple[Callable[[], None], Tensor]:
    """Return a replay of the whole forward pass over fixed buffers, and what it writes."""
    graph, out = captured(lambda: net(*fixed))
    return graph.replay, out


def _company(report: Report, run: Callable[..., Tensor], fresh: Inputs, name: str, case: str, mode: str) -> None:
    """Compare the last row among the others with the same row alone, or with its twin."""
    latents, timestep, context = fresh
    each = len(context) // len(latents)
    among = run(*fresh)[-1].clone()
    alone = run(latents[-1:].clone(memory_format=torch.preserve_format), timestep[-1:].clone(), context[-each:].clone())
    same, near = torch.equal(among, alone[-1]), decibels(among, alone[-1])
    note = "equal" if same else f"dB of a row in company; at least {_LEAST_DECIBELS:g}"
    report.expect(same or near >= _LEAST_DECIBELS, f"{name} in company", case, mode, near, note)
