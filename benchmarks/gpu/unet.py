"""The UNet's forward pass of SD 1.5 and SD 2.1 at 512x512, torch's operations and ours, each as a CUDA graph.

Each is compared with the same weights in float32, a replay with a plain run, and a row in company with the row alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.check import Case, Check
from benchmarks.gpu.dependent import compare
from benchmarks.gpu.networks import TOLERANCE, Inputs, inputs, ours, unet, unet_spec
from benchmarks.gpu.operations import step_floor
from benchmarks.gpu.timing import by_events, captured, decibels, error, on_cpu
from model.ops import PLAIN
from model.unet import Unet

_ROWS = (2, 32, 8, 16)
# GEGLU inside its matrix product, against a library's product and a kernel after it: which of them serves? And what are
# the transformers' residuals worth that products add (engines/cuda_folds.py), against 48 additions?
_MODES = {"SD 1.5": ("ours", "eager", "ours, fused geglu", "ours, residuals apart"), "SD 2.1": ("ours", "eager")}
_LEAST_DECIBELS = 50.0  # of a row in company against the row alone, where bits differ (docs/design.md, --pixels fast)


class _Nets:
    """One network at a time is kept: building one takes a second, 1.7 GB."""

    def __init__(self, check: Check) -> None:
        self._check, self._key, self._net = check, ("", ""), None

    def get(self, name: str, mode: str) -> Unet:
        if self._key != (name, mode) or self._net is None:
            self._net = None
            made = PLAIN if mode == "eager" else ours(self._check, fused_geglu="fused" in mode)
            self._net = unet(self._check, name, ops=made, residuals="apart" not in mode)
            self._key = (name, mode)
        return self._net


def cases(check: Check) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    nets, right = _Nets(check), {}
    for name, modes in _MODES.items():
        yield Case(f"{name} float32", partial(_reference, check, name, right))
        for mode in modes:
            yield Case(f"{name} {mode} error", partial(_error, check, nets, name, mode, right))
            for rows in _ROWS[: 1 if check.dry else 2 if "," in mode or (name, mode) == ("SD 2.1", "eager") else None]:
                yield Case(f"{name} {mode} {rows} rows", partial(_speed, check, nets, name, mode, rows))
        for rows in _ROWS[: 1 if check.dry else 2] if name == "SD 1.5" else ():
            yield Case(f"{name} dependent {rows} rows", partial(_dependent, check, nets, name, rows))


def _reference(check: Check, name: str, right: dict[str, Tensor]) -> None:
    net = unet(check, name, dtype=torch.float32)  # torch's defaults: no tf32 in products, so none in convolutions
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    latents, timestep, context = inputs(check, unet_spec(check, name), 2, seed=1)
    right[name] = net(latents.float(), timestep, context.float()).cpu()


def _error(check: Check, nets: _Nets, name: str, mode: str, right: dict[str, Tensor]) -> None:
    net = nets.get(name, mode)
    got = net(*inputs(check, unet_spec(check, name), 2, seed=1)).float().cpu()
    if name not in right:
        finite = bool(got.isfinite().all())
        check.expect(finite, name, "2 rows", mode, float("nan"), "no float32 reference; are all numbers finite?")
        return
    far = error(got, right[name])
    check.expect(far < TOLERANCE, f"{name} error", "2 rows", mode, far, f"to float32; tolerance {TOLERANCE:g}")


def _speed(check: Check, nets: _Nets, name: str, mode: str, rows: int) -> None:
    net, spec, case = nets.get(name, mode), unet_spec(check, name), f"{rows} rows"
    flops, floor = step_floor(spec, rows, *check.ceilings())
    fixed, fresh = inputs(check, spec, rows, seed=0), inputs(check, spec, rows, seed=1)

    def plain() -> Tensor:
        return net(*fixed)

    if check.dry:
        check.time(name, case, mode, on_cpu(plain), flops=flops, floor=floor)
    else:
        if rows == 2:
            check.time(name, case, f"{mode}, launched", by_events(plain), flops=flops, floor=floor)
        replay, out = graph_of(net, fixed)
        check.time(name, case, mode, by_events(replay, seconds=0.6), flops=flops, floor=floor)
        right = net(*fresh).clone()
        for buffer, values in zip(fixed, fresh, strict=True):
            buffer.copy_(values)
        out.fill_(float("nan"))  # a replay that writes nothing shows
        replay()
        torch.cuda.synchronize()
        same, far = torch.equal(out, right), error(out, right)
        check.expect(same or far < TOLERANCE, f"{name} replay", case, mode, far, "equal" if same else "not bit for bit")
    company(check, net, fresh, name, case, mode)


def _dependent(check: Check, nets: _Nets, name: str, rows: int) -> None:
    compare(check, nets.get(name, "ours"), name, rows)


def graph_of(net: Unet, fixed: Inputs) -> tuple[Callable[[], None], Tensor]:
    """A replay of the whole forward pass over fixed buffers, and what it writes."""
    graph, out = captured(lambda: net(*fixed))
    return graph.replay, out


def company(check: Check, net: Unet, fresh: Inputs, name: str, case: str, mode: str) -> None:
    """The last row among the others against the same row alone."""
    among = net(*fresh)[-1].clone()
    alone = net(*(x[-1:].clone(memory_format=torch.preserve_format) for x in fresh))[0]
    same, near = torch.equal(among, alone), decibels(among, alone)
    note = "equal" if same else f"dB of a row in company; at least {_LEAST_DECIBELS:g}"
    check.expect(same or near >= _LEAST_DECIBELS, f"{name} in company", case, mode, near, note)
