"""Decoding pictures of 512x512: torch's operations and ours, as a CUDA graph, beside float32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.frame import ahead
from benchmarks.gpu.frame.report import Case, Check
from benchmarks.gpu.frame.timing import by_events, captured, error, on_cpu
from benchmarks.gpu.subjects.networks import TOLERANCE, ours, vae, vae_spec
from model.ops import PLAIN, Ops
from model.vae import VaeDecoder

_PICTURES = (1, 4)


def cases(check: Check) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True
    yield ahead.case(check, "networks")
    right: list[Tensor] = []
    yield Case("float32", partial(_reference, check, right))
    for mode in ("ours", "eager"):
        for pictures in _PICTURES[: 1 if check.dry else None]:
            yield Case(f"{mode} {pictures}", partial(_decode, check, mode, pictures, right))


def _latents(check: Check, pictures: int, seed: int) -> Tensor:
    side = 8 if check.dry else 64
    generator = torch.Generator(check.device).manual_seed(seed)
    shape = (pictures, vae_spec(check).latent_channels, side, side)
    x = torch.randn(*shape, device=check.device, generator=generator).to(check.dtype)
    return x.contiguous(memory_format=torch.channels_last)


def _reference(check: Check, right: list[Tensor]) -> None:
    torch.backends.cudnn.benchmark = False  # nothing of it is timed
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    right.append(vae(check, dtype=torch.float32)(_latents(check, 1, seed=1).float()).cpu())
    torch.backends.cudnn.benchmark = True


def _flops(check: Check) -> float:
    """Of one picture."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        VaeDecoder(vae_spec(check))(torch.empty(_latents(check, 1, seed=0).shape))
    return float(counter.get_total_flops())


def _decode(check: Check, mode: str, pictures: int, right: list[Tensor]) -> None:
    ops: Ops = PLAIN if mode == "eager" else ours(check)
    net, x = vae(check, ops=ops), _latents(check, pictures, seed=1)
    case, flops = f"{pictures} picture" + "s" * (pictures > 1), pictures * _flops(check)
    got = net(x)
    if pictures == 1 and right:
        far = error(got.float().cpu(), right[0])
        check.expect(far < TOLERANCE, "decode error", case, mode, far, f"to float32; tolerance {TOLERANCE:g}")
    if check.dry:
        check.time("decode", case, mode, on_cpu(lambda: net(x)), flops=flops)
        return
    graph, out = captured(lambda: net(x))
    check.time("decode", case, mode, by_events(graph.replay, seconds=0.4), flops=flops)
    out.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    far = error(out, got)
    check.expect(far < TOLERANCE, "decode replay", case, mode, far, "equal" if torch.equal(out, got) else "")
