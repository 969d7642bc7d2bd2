"""Decoding pictures of 512x512: torch's operations and ours, as a CUDA graph, beside float32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.frame import ahead
from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.frame.timing import by_events, captured, error, on_cpu
from benchmarks.gpu.subjects.networks import TOLERANCE, ours, vae, vae_spec
from model.ops import PLAIN, Ops
from model.vae import VaeDecoder

_PICTURES = (1, 4)


def cases(report: Report) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    yield ahead.case(report, "networks")
    right: list[Tensor] = []
    yield Case("float32", partial(_reference, report, right))
    for mode in ("ours", "eager"):
        for pictures in _PICTURES[: 1 if report.dry else None]:
            yield Case(f"{mode} {pictures}", partial(_decode, report, mode, pictures, right))


def _latents(report: Report, pictures: int, seed: int) -> Tensor:
    side = 8 if report.dry else 64
    generator = torch.Generator(report.device).manual_seed(seed)
    shape = (pictures, vae_spec(report).latent_channels, side, side)
    x = torch.randn(*shape, device=report.device, generator=generator).to(report.dtype)
    return x.contiguous(memory_format=torch.channels_last)


def _reference(report: Report, right: list[Tensor]) -> None:
    torch.backends.cudnn.benchmark = False  # nothing of it is timed
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    right.append(vae(report, dtype=torch.float32)(_latents(report, 1, seed=1).float()).cpu())
    torch.backends.cudnn.benchmark = True


def _flops(report: Report) -> float:
    """Count the FLOP of one picture."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        VaeDecoder(vae_spec(report))(torch.empty(_latents(report, 1, seed=0).shape))
    return float(counter.get_total_flops())


def _decode(report: Report, mode: str, pictures: int, right: list[Tensor]) -> None:
    ops: Ops = PLAIN if mode == "eager" else ours(report)
    net, x = vae(report, ops=ops), _latents(report, pictures, seed=1)
    case, flops = f"{pictures} picture" + "s" * (pictures > 1), pictures * _flops(report)
    got = net(x)
    if pictures == 1 and right:
        far = error(got.float().cpu(), right[0])
        report.expect(far < TOLERANCE, "decode error", case, mode, far, f"to float32; tolerance {TOLERANCE:g}")
    if report.dry:
        report.time("decode", case, mode, on_cpu(lambda: net(x)), flops=flops)
        return
    graph, out = captured(lambda: net(x))
    report.time("decode", case, mode, by_events(graph.replay, seconds=0.4), flops=flops)
    out.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    far = error(out, got)
    report.expect(far < TOLERANCE, "decode replay", case, mode, far, "equal" if torch.equal(out, got) else "")
