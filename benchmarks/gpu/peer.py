"""A guided step of SD 1.5 in diffusers with torch.compile at its best settings, beside ours in the same run.

Needs the wheel of diffusers (docs/gpu.md says how it travels); random weights of the same shapes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.check import Case, Check
from benchmarks.gpu.here import needed
from benchmarks.gpu.lab import Lab, Request
from benchmarks.gpu.networks import TOKENS, unet_spec
from benchmarks.gpu.operations import step_floor
from benchmarks.gpu.timing import by_events, on_cpu


def cases(check: Check) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    took: dict[str, float] = {}
    for n in (1,) if check.dry else (1, 16):
        yield Case(f"ours {n}", partial(_ours, check, n, took))
        yield Case(f"diffusers {n} launched", partial(_theirs, check, n, "launched", took))
        yield Case(f"diffusers {n} compiled", partial(_theirs, check, n, "compiled", took))


def _ours(check: Check, n: int, took: dict[str, float]) -> None:
    """The loop that serves: `n` guided seats, host and all."""
    lab = Lab(check, "SD 1.5", n, buckets=(2 * n,))
    for seat in range(n):
        lab.sit(seat, Request("ddim", 50, 7.5, seat))
    flops, floor = step_floor(lab.spec, 2 * n, *check.ceilings())
    for _ in range(3):
        lab.stepper.step(range(n))
    count, begin = 2 if check.dry else 30, time.perf_counter()
    if not check.dry:
        torch.cuda.synchronize()
        begin = time.perf_counter()
    for _ in range(count):
        lab.stepper.step(range(n))
    if not check.dry:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - begin) / count
    took[f"ours {n}"] = check.time("step", f"{n} requests", "ours", [seconds], flops=flops, floor=floor)


def _theirs(check: Check, n: int, mode: str, took: dict[str, float]) -> None:
    made, scheduler = _network(check), _schedule()
    spec, compiled = unet_spec(check, "SD 1.5"), mode == "compiled"
    if compiled:
        made.fuse_qkv_projections()
        if check.dry:
            made = torch.compile(made, fullgraph=True, backend="aot_eager")
        else:
            made = torch.compile(made, fullgraph=True, mode="max-autotune")
    scheduler.set_timesteps(50)
    side = spec.sample_size
    latents = torch.randn(n, spec.in_channels, side, side, device=check.device).to(check.dtype)
    context = torch.randn(2 * n, TOKENS, spec.context_width, device=check.device).to(check.dtype)

    def step() -> Tensor:
        # As its pipeline does it, timesteps on the host.
        x = torch.cat([latents] * 2).contiguous(memory_format=torch.channels_last)
        negative, positive = made(x, 501, encoder_hidden_states=context, return_dict=False)[0].chunk(2)
        guided = negative + 7.5 * (positive - negative)
        return scheduler.step(guided, scheduler.timesteps[25], latents, return_dict=False)[0]

    start = time.monotonic()
    step()
    note = f"first step after {time.monotonic() - start:.0f} s"
    flops, floor = step_floor(spec, 2 * n, *check.ceilings())
    seconds = on_cpu(step) if check.dry else by_events(step, seconds=1)
    case = f"{n} requests"
    median = check.time("step", case, f"diffusers {mode}", seconds, flops=flops, floor=floor, note=note)
    if compiled and f"ours {n}" in took:
        check.row("gain", case, "diffusers compiled", "x", [median / took[f"ours {n}"]], note="times as fast as theirs")


def _network(check: Check) -> Any:
    kind, spec = needed("diffusers", "UNet2DConditionModel"), unet_spec(check, "SD 1.5")
    cross = [(attends and "CrossAttnDownBlock2D") or "DownBlock2D" for attends in spec.attention_down]
    up = [(attends and "CrossAttnUpBlock2D") or "UpBlock2D" for attends in spec.attention_up]
    with torch.device(check.device):
        net = kind(
            sample_size=spec.sample_size,
            block_out_channels=spec.channels,
            down_block_types=cross,
            up_block_types=up,
            attention_head_dim=spec.heads[0],  # which is their number of heads
            cross_attention_dim=spec.context_width,
            norm_num_groups=spec.groups,
        )
    return net.to(check.dtype).eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _schedule() -> Any:
    kind = needed("diffusers", "DDIMScheduler")
    return kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
