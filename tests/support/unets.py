"""Unets of the published shapes at a twentieth of their size: made, run and compared."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.subjects import networks
from engines.cuda.kernels import plain_kernels
from engines.cuda.ops import KernelOps
from model.random import init_random
from model.unet import Unet
from pipeline.spec import UnetSpec

SD15 = replace(networks.SD15, sample_size=8, channels=(32, 64, 128, 128), context_width=48)
SD21 = replace(SD15, heads=(2, 4, 8, 8), linear_projection=True)
# SDXL's: no attention outermost, then two layers in each transformer, then ten.
SDXL = replace(
    SD21,
    channels=(32, 64, 128),
    layers=(1, 1, 1),
    attention_down=(False, True, True),
    attention_up=(True, True, False),
    heads=(2, 4, 8),
    transformer_layers=(1, 2, 10),
)


def unet_of(spec: UnetSpec, dtype: torch.dtype, *, biases: float = 1.0, without: Any = (), seed: int = 3) -> Unet:
    """With kernels' operations. `biases` of what is added to streams and pictures: of their order, where a forgotten
    one shows; layers whose names end in `without` have none."""
    net = init_random(Unet(spec, KernelOps(plain_kernels())), seed).eval().to(dtype)
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(("to_out.0", "ff.net.2", "proj_out")):
            assert module.bias is not None
            module.bias.data.mul_(10 * biases)
            if name.endswith(without):
                module.register_parameter("bias", None)
    return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (torch's stubs lack this)


def inputs(spec: UnetSpec, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, context = (torch.randn(s, generator=generator) for s in ((2, 4, 8, 8), (2, 9, spec.context_width)))
    return x.to(dtype), torch.tensor([3.0, 701.0]), context.to(dtype)


def away(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


def use(net: Unet, ops: Any) -> Unet:
    for module in net.modules():
        if hasattr(module, "ops"):
            module.ops = ops
    return net


class Passes(TorchDispatchMode):
    """Counts operations by their names without an overload's."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


# Products over half the rows may sum in another order.
CLOSE = 1e-12


def twin_inputs(spec: UnetSpec, rows: int, copies: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of `rows` rows, not square; timesteps and contexts of all."""
    generator = torch.Generator().manual_seed(rows)
    latents = torch.randn(rows, spec.in_channels, 8, 16, generator=generator).double()
    timesteps = torch.rand(rows, generator=generator) * 999
    context = torch.randn(rows * copies, 9, spec.context_width, generator=generator).double()
    return latents, timesteps.repeat_interleave(copies), context
