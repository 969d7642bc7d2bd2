"""The networks that are measured: Stable Diffusion's shapes with random weights, and tiny ones for dry runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.gpu.frame.here import needed
from benchmarks.gpu.frame.report import AbsentError, Report
from model.clip import ClipText
from model.ops import PLAIN, Ops
from model.random import init_random
from model.unet import Unet
from model.vae import VaeDecoder
from pipeline.schedule import ScheduleSpec
from pipeline.spec import Defaults, Spec, TextSpec, UnetSpec, VaeSpec

SD15 = UnetSpec(
    in_channels=4,
    out_channels=4,
    sample_size=64,
    channels=(320, 640, 1280, 1280),
    layers=(2, 2, 2, 2),
    attention_down=(True, True, True, False),
    attention_up=(False, True, True, True),
    heads=(8, 8, 8, 8),
    transformer_layers=(1, 1, 1, 1),
    context_width=768,
    linear_projection=False,
    groups=32,
    eps=1e-5,
    flip_sin_to_cos=True,
    freq_shift=0.0,
)
SD21 = replace(SD15, heads=(5, 10, 20, 20), context_width=1024, linear_projection=True)  # at 512x512, like SD15
# A step of a millisecond, for what takes thousands of them; heads of 32.
SMALL = replace(SD15, sample_size=16, channels=(64, 128, 128, 128), heads=(2, 4, 4, 4), context_width=64)
UNETS = {"SD 1.5": SD15, "SD 2.1": SD21, "small": SMALL}
VAE = VaeSpec(
    image_channels=3,
    latent_channels=4,
    channels=(128, 256, 512, 512),
    layers=2,
    groups=32,
    scaling_factor=0.18215,
    shift_factor=0.0,
    quant_conv=True,
    post_quant_conv=True,
    mid_attention=True,
)
TOKENS = 77
SCHEDULE = ScheduleSpec(
    train_steps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction="epsilon",
    spacing="leading",
    steps_offset=1,
    set_alpha_to_one=False,
    rescale_betas_zero_snr=False,
)
TEXT = TextSpec(
    vocab_size=49408, tokens=TOKENS, width=768, hidden=3072, layers=12, heads=12, activation="quick_gelu", eps=1e-5
)
_TINY = {
    "sample_size": 8, "channels": (16, 32, 32, 32), "layers": (1, 1, 1, 1), "context_width": 24, "groups": 8
}  # fmt: skip
TINY_UNETS = {
    "SD 1.5": replace(SD15, heads=(2, 2, 2, 2), **_TINY),
    "SD 2.1": replace(SD21, heads=(1, 2, 2, 2), **_TINY),
    "small": replace(SD15, heads=(2, 2, 2, 2), **_TINY),
}
TINY_VAE = replace(VAE, channels=(8, 16, 16, 16), groups=4, layers=1)

# Relative error of float16 against float32, on random weights: 2.1e-3 a UNet on a CPU; bfloat16 has 1.7e-2.
TOLERANCE = 1e-2

Inputs = tuple[Tensor, Tensor, Tensor]
_Net = TypeVar("_Net", bound=nn.Module)


def unet_spec(report: Report, name: str) -> UnetSpec:
    """Return the spec of the UNet `name`, a key of UNETS."""
    return (TINY_UNETS if report.dry else UNETS)[name]


def vae_spec(report: Report) -> VaeSpec:
    return TINY_VAE if report.dry else VAE


def whole_spec(report: Report, name: str = "SD 1.5") -> Spec:
    """Return the spec of a model whose UNet is `name`."""
    unet, vae = unet_spec(report, name), vae_spec(report)
    side = unet.sample_size * vae.factor
    text = replace(TEXT, width=unet.context_width)
    return Spec(text, unet, vae, SCHEDULE, Defaults(30, 7.5, "dpmpp_2m", side, side))


def unet(
    report: Report, name: str, ops: Ops = PLAIN, dtype: torch.dtype | None = None, *, residuals: bool = True
) -> Unet:
    """Make the UNet `name` on the device, channels_last; the same weights at every call, whatever `ops`.

    `residuals`: a transformer's are all added inside its products, as they are served; else in passes of their own.
    """
    with torch.device("meta"):
        net = Unet(unet_spec(report, name), ops=ops)
    return _folded(_filled(net, report, dtype), ops, residuals=residuals)


def vae(report: Report, ops: Ops = PLAIN, dtype: torch.dtype | None = None) -> VaeDecoder:
    with torch.device("meta"):
        net = VaeDecoder(vae_spec(report), ops=ops)
    return _folded(_filled(net, report, dtype), ops)


def text(report: Report) -> ClipText:
    """Make the text encoder of SD 1.5, in float32 as the backend keeps it."""
    with torch.device("meta"):
        net = ClipText(whole_spec(report).text)
    return _filled(net, report, torch.float32)


def _filled(net: _Net, report: Report, dtype: torch.dtype | None) -> _Net:
    # Weights are drawn in the type that is measured, then widened: a float32 reference has the very same ones.
    net = net.to(report.dtype).to_empty(device=report.device)
    init_random(net, seed=0)
    net.to(dtype or report.dtype).eval()
    return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stubs lack this)


def _folded(net: _Net, ops: Ops, **options: bool) -> _Net:
    """Fold as the backend does: with ours, biases are moved to where they cost no pass over a picture."""
    if ops is not PLAIN:
        needed("engines.cuda.ops", "fold_biases")(net, **options)
    return net


def inputs(report: Report, spec: UnetSpec, rows: int, seed: int) -> Inputs:
    """Draw latents [rows, C, h, w], channels_last, timesteps [rows] and contexts [rows, 77, width]."""
    side, generator = spec.sample_size, torch.Generator(report.device).manual_seed(seed)
    options = {"device": report.device, "generator": generator}
    latents = torch.randn(rows, spec.in_channels, side, side, **options).to(report.dtype)
    timestep = torch.rand(rows, **options) * 999
    context = torch.randn(rows, TOKENS, spec.context_width, **options).to(report.dtype)
    return latents.contiguous(memory_format=torch.channels_last), timestep, context


def our_kernels(report: Report) -> Any:
    """Return the Kernels of engines.cuda: Triton's, or torch in a dry run. Raises AbsentError where one is missing."""
    plain, triton = needed("engines.cuda.kernels", "plain_kernels", "triton_kernels")
    try:
        return plain() if report.dry else triton()
    except ModuleNotFoundError as missing:
        raise AbsentError(f"{missing.name} is not here", wrong=missing.name == "triton") from missing


def ours(report: Report, **choices: Any) -> Ops:
    """Return the operations with our kernels, as served but for these fields of engines.cuda.choices.Choices.

    Raises AbsentError where they are not written.
    """
    chosen, ops = needed("engines.cuda.choices", "CHOSEN"), needed("engines.cuda.ops", "KernelOps")
    return ops(our_kernels(report), replace(chosen, **choices))
