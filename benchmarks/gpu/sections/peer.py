"""A guided step of SD 1.5 and 2.1 in diffusers with torch.compile at its best settings, beside ours in the same run.

A compilation takes a minute or more, so the most telling ones come first, and what does not fit is told as skipped.
Needs the wheel of diffusers (docs/gpu.md says how it travels); random weights of the same shapes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.frame import ahead
from benchmarks.gpu.frame.here import needed
from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.frame.timing import by_events, on_cpu
from benchmarks.gpu.subjects.lab import Lab, Request
from benchmarks.gpu.subjects.networks import TOKENS, unet_spec
from benchmarks.gpu.subjects.operations import step_floor
from engines.cuda.ops import sum_in_float32

_REST = (("SD 1.5", 4), ("SD 1.5", 8), ("SD 2.1", 16), ("SD 2.1", 4), ("SD 2.1", 8))


def cases(report: Report) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    yield ahead.case(report, "networks")
    took: dict[str, float] = {}
    both = (("SD 1.5", 1), ("SD 2.1", 1))
    for name, n in both if report.dry else (*both[:1], ("SD 1.5", 16), *both[1:], *_REST):
        yield Case(f"{name} ours {n}", partial(_ours, report, name, n, took))
        yield Case(f"{name} diffusers {n} launched", partial(_theirs, report, name, n, "launched", took))
        yield Case(f"{name} diffusers {n} compiled", partial(_theirs, report, name, n, "compiled", took))


def _ours(report: Report, name: str, n: int, took: dict[str, float]) -> None:
    """Time the loop that serves: `n` guided seats, host and all."""
    sum_in_float32()
    lab = Lab(report, name, n, buckets=(2 * n,))
    for seat in range(n):
        lab.sit(seat, Request("ddim", 50, 7.5, seat))
    flops, floor = step_floor(lab.spec, 2 * n, *report.ceilings(), copies=lab.copies)
    for _ in range(3):
        lab.stepper.step(range(n))
    count, begin = 2 if report.dry else 30, time.perf_counter()
    if not report.dry:
        torch.cuda.synchronize()
        begin = time.perf_counter()
    for _ in range(count):
        lab.stepper.step(range(n))
    if not report.dry:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - begin) / count
    case = _case(name, n)
    took[case] = report.time("step", case, "ours", [seconds], flops=flops, floor=floor)


def _theirs(report: Report, name: str, n: int, mode: str, took: dict[str, float]) -> None:
    sum_in_float32(False)  # their default, which is faster where it differs
    net, scheduler = _network(report, name), _schedule()
    spec, compiled = unet_spec(report, name), mode == "compiled"
    if compiled:
        net.fuse_qkv_projections()
        if report.dry:
            net = torch.compile(net, fullgraph=True, backend="aot_eager")
        else:
            net = torch.compile(net, fullgraph=True, mode="max-autotune")
    scheduler.set_timesteps(50)
    side = spec.sample_size
    latents = torch.randn(n, spec.in_channels, side, side, device=report.device).to(report.dtype)
    context = torch.randn(2 * n, TOKENS, spec.context_width, device=report.device).to(report.dtype)

    def step() -> Tensor:
        # As its pipeline does it, timesteps on the host.
        x = torch.cat([latents] * 2).contiguous(memory_format=torch.channels_last)
        negative, positive = net(x, 501, encoder_hidden_states=context, return_dict=False)[0].chunk(2)
        guided = negative + 7.5 * (positive - negative)
        return scheduler.step(guided, scheduler.timesteps[25], latents, return_dict=False)[0]

    start = time.monotonic()
    step()
    note = f"first step after {time.monotonic() - start:.0f} s"
    flops, floor = step_floor(spec, 2 * n, *report.ceilings())
    seconds = on_cpu(step) if report.dry else by_events(step, seconds=1)
    case = _case(name, n)
    median = report.time("step", case, f"diffusers {mode}", seconds, flops=flops, floor=floor, note=note)
    if compiled and case in took:
        report.row("gain", case, "diffusers compiled", "x", [median / took[case]], note="times as fast as theirs")


def _case(name: str, n: int) -> str:
    """Name a case: SD 1.5's, which the targets name, by the number alone."""
    return f"{n} requests" if name == "SD 1.5" else f"{name} {n} requests"


def _network(report: Report, name: str) -> Any:
    kind, spec = needed("diffusers", "UNet2DConditionModel"), unet_spec(report, name)
    cross = [(attends and "CrossAttnDownBlock2D") or "DownBlock2D" for attends in spec.attention_down]
    up = [(attends and "CrossAttnUpBlock2D") or "UpBlock2D" for attends in spec.attention_up]
    with torch.device(report.device):
        net = kind(
            sample_size=spec.sample_size,
            block_out_channels=spec.channels,
            down_block_types=cross,
            up_block_types=up,
            attention_head_dim=spec.heads,  # which are their numbers of heads
            use_linear_projection=spec.linear_projection,
            cross_attention_dim=spec.context_width,
            norm_num_groups=spec.groups,
        )
    return net.to(report.dtype).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _schedule() -> Any:
    kind = needed("diffusers", "DDIMScheduler")
    return kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
