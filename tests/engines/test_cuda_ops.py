"""The networks through KernelOps, with plain torch in the kernels' places, against the networks as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu import networks
from engines.cuda_kernels import Kernels, plain_kernels, triton_kernels
from engines.cuda_ops import KernelOps, fold_biases
from model.blocks import Resnet
from model.clip import ClipText
from model.ops import PLAIN, PlainOps
from model.random import init_random
from model.unet import Unet
from model.vae import VaeDecoder, VaeEncoder
from pipeline.spec import TextSpec, UnetSpec, VaeSpec

# Float32, summed in another order: of max|y|. Seen: 2e-6.
CLOSE = 1e-5

SD15 = replace(networks.SD15, sample_size=8, channels=(32, 64, 128, 128), context_width=48)
SD21 = replace(SD15, heads=(2, 4, 8, 8), linear_projection=True, context_width=64)
LCM = replace(SD15, guidance_width=16)
TEXT = TextSpec(vocab_size=60, tokens=9, width=32, hidden=128, layers=3, heads=4, activation="quick_gelu", eps=1e-5)
VAE = VaeSpec(
    image_channels=3,
    latent_channels=4,
    channels=(32, 64),
    layers=1,
    groups=32,
    scaling_factor=0.18215,
    shift_factor=0.0,
    quant_conv=True,
    post_quant_conv=True,
    mid_attention=True,
)


class Counted:
    """Plain kernels that count their calls and refuse what Triton's would."""

    def __init__(self, heads: range = range(8, 161, 8)) -> None:
        self.calls: dict[str, int] = {}
        plain = plain_kernels()
        names = ("attention", "group_norm_silu", "layer_norm", "geglu", "geglu_linear", "columns", "split_product")
        self.kernels: Kernels = replace(plain, heads=heads, **{n: self._counting(n, getattr(plain, n)) for n in names})

    def _counting(self, name: str, kernel: Any) -> Any:
        def counted(x: Tensor, *rest: Any, **options: Any) -> Tensor:
            self.calls[name] = self.calls.get(name, 0) + 1
            getattr(self, f"_check_{name}", _check_rows)(x, *rest, **options)
            return kernel(x, *rest, **options)

        return counted

    @staticmethod
    def _check_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool, out: Tensor | None = None) -> None:
        for x in (q, k, v, q if out is None else out):
            assert x.stride(2) == 1 and x.stride(1) % 8 == 0 and x.data_ptr() % 16 == 0

    @staticmethod
    def _check_group_norm_silu(
        x: Tensor, weight: Tensor, *rest: Any, shift: Tensor | None, silu: bool, columns: bool = False
    ) -> None:
        assert x.is_contiguous(memory_format=torch.channels_last) and weight.data_ptr() % 16 == 0
        assert shift is None or (shift.stride(1) == 1 and shift.shape == (len(x), x.shape[1]))

    @staticmethod
    def _check_columns(picture: Tensor) -> None:
        assert picture.is_contiguous(memory_format=torch.channels_last)

    @staticmethod
    def _check_split_product(x: Tensor, *rest: Tensor | None) -> None:
        assert all(one.is_contiguous() and one.data_ptr() % 16 == 0 for one in (x, *rest) if one is not None)


class Everything:
    """As `columns`: each 3x3 convolution that keeps its picture's size, whatever its shape."""

    def __init__(self) -> None:
        self.asked: set[tuple[int, ...]] = set()

    def __contains__(self, shape: object) -> bool:
        assert isinstance(shape, tuple)
        self.asked.add(shape)
        return True


def _check_rows(x: Tensor, *rest: Any, **options: Any) -> None:
    x.view(-1, x.shape[-1])


def pair(build: Any, ops: KernelOps) -> tuple[nn.Module, nn.Module]:
    """The same network twice: as it is, and through `ops`, its convolutions channels_last."""
    plain, fast = build(PLAIN), build(ops)
    init_random(plain, 3)
    fast.load_state_dict(plain.state_dict())
    return plain.eval(), fast.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def close(got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape
    error = float((got - wanted).abs().max() / wanted.abs().max())
    assert error < CLOSE, f"{error:.1e}"


def randoms(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("fused", [False, True], ids=["geglu", "geglu_linear"])
@pytest.mark.parametrize("spec", [SD15, SD21, LCM], ids=["sd15", "sd21", "lcm"])
def test_unet(spec: UnetSpec, fused: bool) -> None:
    counted = Counted(range(4, 161, 4))
    plain, fast = pair(lambda ops: Unet(spec, ops), KernelOps(counted.kernels, fused_geglu=fused))
    fold_biases(fast)
    fold_biases(fast)  # there is nothing left to fold
    x, context = randoms((3, 4, 8, 16), (3, 9, spec.context_width))
    inputs = [x, torch.tensor([1.0, 500.0, 999.0]), context]
    if spec.guidance_width:
        inputs.append(torch.tensor([1.0, 4.0, 8.0]))
    with torch.inference_mode():
        wanted = plain(*inputs)
        for _ in range(2):  # what was prepared at first is what is used then
            close(fast(*inputs), wanted)
    layers, resnets = 16, 22
    assert counted.calls["attention"] == 2 * 2 * layers
    assert counted.calls["layer_norm"] == 2 * 3 * layers
    assert counted.calls["geglu_linear" if fused else "geglu"] == 2 * layers
    assert counted.calls["group_norm_silu"] == 2 * (2 * resnets + layers + 1)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("spec", [SD15, SD21], ids=["sd15", "sd21"])
def test_unet_whose_convolutions_are_products_of_columns(spec: UnetSpec, rows: int) -> None:
    counted, everything = Counted(range(4, 161, 4)), Everything()
    plain, fast = pair(lambda ops: Unet(spec, ops), KernelOps(counted.kernels, columns=everything))
    fold_biases(fast)  # with and without a bias, then
    x, context = randoms((rows, 4, 8, 16), (rows, 9, spec.context_width))
    with torch.inference_mode():
        close(fast(x, torch.full((rows,), 500.0), context), plain(x, torch.full((rows,), 500.0), context))
    # Two of each of 22 resnets straight from the norm; three after a doubling, the first and the last without one.
    assert counted.calls["split_product"] == 2 * 22 + 3 + 2
    assert counted.calls["columns"] == 3 + 2
    assert {(4, 32, 8, 16), (256, 128, 1, 2), (64, 64, 8, 16)} <= everything.asked


def test_a_resnet_through_the_kernels_themselves() -> None:
    """In Triton's interpreter: their launchers take what is handed over, and the three together are a resnet."""
    kernels = triton_kernels()
    plain, fast = pair(
        lambda ops: Resnet(32, 64, time_width=16, groups=8, eps=1e-5, ops=ops),
        KernelOps(kernels, columns={(32, 64, 3, 5), (64, 64, 3, 5)}),
    )
    x, shift = randoms((2, 32, 3, 5), (2, 64))
    with torch.inference_mode():
        close(fast(x.contiguous(memory_format=torch.channels_last), shift), plain(x, shift))


def test_columns_only_where_they_are_asked_for() -> None:
    asked = (128, 128, 1, 1)  # the innermost level, and the middle
    for columns, products in (((), 0), ({asked}, 2 * 2 + 2 * 2 + 3)):
        counted = Counted(range(4, 161, 4))
        plain, fast = pair(lambda ops: Unet(SD15, ops), KernelOps(counted.kernels, columns=columns))
        x, context = randoms((2, 4, 8, 8), (2, 9, SD15.context_width))
        with torch.inference_mode():
            close(fast(x, torch.ones(2), context), plain(x, torch.ones(2), context))
        assert counted.calls.get("split_product", 0) == products and "columns" not in counted.calls


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 1),
    ],
    ids=["stride", "no padding", "dilation", "groups", "1x1"],
)
def test_other_convolutions_are_no_product_of_columns(conv: nn.Conv2d) -> None:
    counted = Counted()
    (x,) = randoms((2, 8, 6, 5))
    with torch.inference_mode():
        close(KernelOps(counted.kernels, columns=Everything()).conv(x, conv), conv(x))
    assert not counted.calls


def test_biases_are_folded_where_a_product_takes_them() -> None:
    unet = init_random(Unet(SD15), 3)

    def biases() -> int:
        return sum(m.bias is not None for m in unet.modules() if isinstance(m, nn.Conv2d))

    before = biases()
    fold_biases(unet, residuals=False)
    assert before - biases() == 22 + 14, "the first of each resnet; the second of those with a shortcut"


def test_packed_weights_are_held_once() -> None:
    ops = KernelOps(plain_kernels())
    _, fast = pair(lambda ops: Unet(SD15, ops), ops)
    x, context = randoms((1, 4, 8, 8), (1, 9, SD15.context_width))
    before = {name: tensor.clone() for name, tensor in fast.state_dict().items()}
    with torch.inference_mode():
        fast(x, torch.ones(1), context)
    # Self-attention's q, k, v of 16 layers, all text projections, all time projections.
    assert len(ops._packed) == 16 + 2
    for linears, packed in ops._packed.items():
        start = packed.weight.data_ptr()
        for linear in linears:
            assert linear.weight.data_ptr() == start and linear.weight.is_contiguous()
            start += linear.weight.nbytes
    assert all(torch.equal(tensor, before[name]) for name, tensor in fast.state_dict().items())


@pytest.mark.parametrize("heads", [range(8, 161, 8), range(0)], ids=["a kernel's head", "too wide for one"])
def test_vae(heads: range) -> None:
    counted = Counted(heads)
    plain, fast = pair(lambda ops: VaeDecoder(VAE, ops), KernelOps(counted.kernels))
    fold_biases(fast)
    latents, image = randoms((2, 4, 6, 5), (2, 3, 12, 10))
    with torch.inference_mode():
        close(fast(latents), plain(latents))
        assert ("attention" in counted.calls) == bool(heads)
        plain, fast = pair(lambda ops: VaeEncoder(VAE, ops), KernelOps(counted.kernels))
        close(fast(image), plain(image))


@pytest.mark.parametrize("heads", [range(8, 161, 8), range(0)], ids=["a kernel's head", "none"])
def test_text(heads: range) -> None:
    plain, fast = pair(lambda ops: ClipText(TEXT, ops), KernelOps(Counted(heads).kernels))
    ids = torch.randint(0, 60, (2, 9), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        for got, wanted in zip(fast(ids), plain(ids), strict=True):
            close(got, wanted)


def test_one_wide_head_in_float16_does_not_overflow() -> None:
    """Scores of 512 products are scaled before they are rounded: 70,000 unscaled would be infinity."""
    q, k, v = (20 * x for x in randoms((1, 9, 512), (1, 9, 512), (1, 9, 512)))
    k = k + q
    ops = KernelOps(replace(plain_kernels(), heads=()))
    wanted = PlainOps().attention(q, k, v, 1)
    got = ops.attention(q.half(), k.half(), v.half(), 1).float()
    assert float((q @ k.transpose(1, 2)).abs().max()) > 65504
    # The softmax is as good as a choice here; float16 has 11 bits.
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 2e-3


@pytest.mark.parametrize("spec", [SD15, SD21], ids=["convolutions", "linear"])
@pytest.mark.parametrize("rows", [1, 2])
def test_no_picture_is_laid_out_anew(spec: UnetSpec, rows: int) -> None:
    """A stride of a single row that torch takes for the other memory format costs copies in every step."""
    net = init_random(Unet(spec, KernelOps(plain_kernels())), seed=1).to(memory_format=torch.channels_last)
    joined: list[bool] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.cat.default and made.ndim == 4:  # it takes the format of what it joins
                joined.append(made.is_contiguous(memory_format=torch.channels_last))
            return made

    with torch.inference_mode():
        shifts, kept = net.time_shifts(torch.ones(rows)), net.context_kv(torch.randn(rows, 9, spec.context_width))
        with Watch():
            net.denoise(torch.randn(rows, 4, 8, 8).contiguous(memory_format=torch.channels_last), shifts, kept)
    assert joined == [True] * 12
