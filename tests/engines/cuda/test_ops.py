"""The networks through KernelOps, with plain torch in the kernels' places, against the networks as they are."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from engines.cuda.choices import Choices
from engines.cuda.kernels import plain_kernels, triton_kernels
from engines.cuda.ops import KernelOps, fold_biases
from model.blocks import Resnet
from model.clip import ClipText
from model.ops import PLAIN, PlainOps
from model.random import init_random
from model.unet import Unet
from model.vae import VaeDecoder, VaeEncoder
from pipeline.spec import TextSpec, UnetSpec, VaeSpec
from tests.support.counted import Counted
from tests.support.unets import SD15, SD21

# Float32, summed in another order: of max|y|. Seen: 2e-6.
CLOSE = 1e-5

WIDER = replace(SD21, context_width=64)
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
@pytest.mark.parametrize("spec", [SD15, WIDER, LCM], ids=["sd15", "sd21", "lcm"])
def test_unet(spec: UnetSpec, fused: bool) -> None:
    counted = Counted(range(4, 161, 4))
    ops = KernelOps(counted.kernels, Choices(geglu={None: "fused" if fused else "apart"}))
    plain, fast = pair(lambda ops: Unet(spec, ops), ops)
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


def test_a_resnet_through_the_kernels_themselves() -> None:
    """In Triton's interpreter: their launchers take what is handed over, and together they are a resnet."""
    plain, fast = pair(
        lambda ops: Resnet(32, 64, time_width=16, groups=8, eps=1e-5, ops=ops),
        KernelOps(triton_kernels()),
    )
    x, shift = randoms((2, 32, 3, 5), (2, 64))
    with torch.inference_mode():
        close(fast(x.contiguous(memory_format=torch.channels_last), shift), plain(x, shift))


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


@pytest.mark.parametrize("spec", [SD15, WIDER], ids=["convolutions", "linear"])
@pytest.mark.parametrize("rows", [1, 2])
def test_no_picture_is_laid_out_anew(spec: UnetSpec, rows: int) -> None:
    """A stride of a single row that torch takes for the other memory format costs copies in every step."""
    net = init_random(Unet(spec, KernelOps(plain_kernels())), seed=1).to(memory_format=torch.channels_last)
    joined: list[bool] = []  # the skips

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.cat.default and made.ndim == 3:
                joined.append(all(x.is_contiguous() for x in args[0]))
            assert func is not torch.ops.aten.clone.default, "a picture was laid out anew"
            return made

    with torch.inference_mode():
        shifts, kept = net.time_shifts(torch.ones(rows)), net.context_kv(torch.randn(rows, 9, spec.context_width))
        with Watch():
            net.denoise(torch.randn(rows, 4, 8, 8).contiguous(memory_format=torch.channels_last), shifts, kept)
    assert joined == [True] * 12


def test_attention_is_chosen_by_width_queries_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the table is all that it takes; what it does not name is ours."""
    asked = []
    monkeypatch.setattr(
        "engines.cuda.ops.sdpa_kernel", lambda backend: asked.append(backend) or contextlib.nullcontext()
    )
    counted = Counted()
    table = Choices(attention={None: "ours", (40, 24, 24): "cudnn", (40, 24, 7): "flash", (80, 6, 6): "ours"})
    ops = KernelOps(counted.kernels, table)
    for d, t, s, library in (
        (40, 24, 24, SDPBackend.CUDNN_ATTENTION),
        (40, 24, 7, SDPBackend.FLASH_ATTENTION),
        (40, 24, 8, None),
        (80, 6, 6, None),
    ):
        asked.clear()
        counted.calls.clear()
        q, k, v = randoms((2, t, 2 * d), (2, s, 2 * d), (2, s, 2 * d))
        close(ops.attention(q, k, v, 2), PLAIN.attention(q, k, v, 2))
        close(ops.shared_attention(q[:1], k, v, 2, copies=2), PLAIN.shared_attention(q[:1], k, v, 2, copies=2))
        assert asked == [library] * 2 if library else not asked
        assert counted.calls == ({} if library else {"attention": 2})


def test_a_table_names_the_convolutions_that_are_products(monkeypatch: pytest.MonkeyPatch) -> None:
    (x,), conv = randoms((2, 8, 6, 5)), nn.Conv2d(8, 16, 1)
    products: list[Any] = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda *a: products.append(a) or linear(*a))
    for table, expected in (({None: "product"}, 1), ({None: "product", (1, 8, 16, 6, 5): "library"}, 0)):
        products.clear()
        with torch.inference_mode():
            close(KernelOps(plain_kernels(), Choices(convolution=table)).conv(x, conv), conv(x))
        assert len(products) == expected


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_skips_are_joined_as_tokens(rows: int) -> None:
    """Equal values and strides to those of a concatenation of pictures."""
    x, skip = (torch.randn(rows, c, 4, 5).contiguous(memory_format=torch.channels_last) for c in (6, 3))
    got, wanted = KernelOps(plain_kernels()).concat(x, skip), PLAIN.concat(x, skip)
    assert torch.equal(got, wanted) and got.stride() == wanted.stride()
