"""The attention kernel in Triton's interpreter, against its formula in float64. bf16 is compiled only (test_aot.py):
the interpreter multiplies its raw bits."""

from __future__ import annotations

import math

import pytest
import torch
import triton
from torch import Tensor

from kernels.attention import PARTS, attention, floor, reference, work
from kernels.attention_tiles import Tiles, choose, for_plugin

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1 before Triton")

F32, F16 = torch.float32, torch.float16


def qkv(n: int, t: int, s: int, heads: int, d: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, x, heads * d, generator=draw).to(dtype) for x in (t, s, s))  # type: ignore[return-value]


def tolerance(q: Tensor, k: Tensor, v: Tensor, heads: int, *, causal: bool = False) -> Tensor:
    """What rounding may do to each element of the result.

    fp16: every weight p <= 1 is rounded once, by 2^-11 of itself or 2^-25 where it is subnormal, its largest in a row
    being 1; the result is rounded once, by 2^-11. A tenth more for what fp32 does.
    f32: a weight is 2^x with |x| < 16 rounded by 2^-24 of x, so off by 16 ln 2 2^-24 of itself = 6.6e-7; it enters sum
    and normaliser, and sums of up to 1,024 terms in blocks of up to 64 add some 64 2^-24 = 3.8e-6 at worst.
    """
    weighted = reference(q, k, v.abs(), heads, causal=causal)
    if q.dtype == F32:
        return 5e-6 * weighted
    result = reference(q, k, v, heads, causal=causal).abs()
    return 1.1 * 2**-11 * (weighted + result) + k.shape[1] * 2**-25 * v.abs().max()


def check(q: Tensor, k: Tensor, v: Tensor, heads: int, *, causal: bool = False, tiles: Tiles | None = None) -> Tensor:
    got = attention(q, k, v, heads, causal=causal, tiles=tiles)
    assert got.is_contiguous() and got.shape == q.shape and got.dtype == q.dtype
    wrong = (got - reference(q, k, v, heads, causal=causal)).abs() - tolerance(q, k, v, heads, causal=causal)
    assert wrong.max() <= 0, f"{wrong.max().item():.2g} past the tolerance"
    return got


@pytest.mark.parametrize("d", PARTS)
@pytest.mark.parametrize("dtype", [F32, F16])
def test_every_head_dimension(d, dtype):
    check(*qkv(2, 70, 77, 2, d, dtype), 2)


@pytest.mark.parametrize(("t", "s"), [(1, 1), (1, 130), (5, 3), (63, 64), (64, 16), (65, 65), (129, 80), (600, 257)])
@pytest.mark.parametrize("dtype", [F32, F16])
def test_ragged_lengths(t, s, dtype):
    check(*qkv(1, t, s, 2, 40, dtype), 2)


@pytest.mark.parametrize("dtype", [F32, F16])
def test_a_thousand_positions(dtype):
    check(*qkv(1, 1024, 1024, 1, 40, dtype), 1)


def test_a_large_picture_and_its_text():
    check(*qkv(1, 16384, 77, 1, 40, F16), 1)


@pytest.mark.parametrize(("t", "s"), [(77, 77), (1, 1), (130, 130), (100, 20), (20, 100), (600, 600)])
@pytest.mark.parametrize("dtype", [F32, F16])
def test_causal(t, s, dtype):
    q, k, v = qkv(1, t, s, 1, 64, dtype)
    got = check(q, k, v, 1, causal=True)
    assert torch.equal(got[:, 0], v[:, 0]), "the first position sees the first key alone"


@pytest.mark.parametrize("d", [40, 64])
def test_every_tiling_of_the_table(d):
    q, k, v = qkv(1, 140, 200, 1, d, F16)
    for tiles in {choice for arch in (80, 90) for choice in (choose(d, arch, 4096), choose(d, arch, 64))}:
        check(q, k, v, 1, tiles=tiles)
        check(q, k, v, 1, tiles=for_plugin(d, 90))


def test_large_scores_do_not_overflow():
    q, k, v = qkv(1, 70, 90, 1, 40, F16)
    got = attention(q * 100, k * 100, v, 1)  # scores up to some 10^5: exp would be infinite
    assert got.isfinite().all()
    best = (q.double() @ k.double().transpose(1, 2)).argmax(-1)[0]
    assert (got[0] - v[0, best]).abs().median() < 1e-3, "nearly every position takes one key's value"


def test_views_of_fused_projections_and_out():
    n, t, s, heads, d = 2, 70, 77, 2, 40
    width = heads * d
    fused = torch.randn(n, t, 3 * width, generator=torch.Generator().manual_seed(1)).half()
    q, k, v = fused.chunk(3, -1)
    assert torch.equal(check(q, k, v, heads), attention(*(x.contiguous() for x in (q, k, v)), heads)), (
        "layout is nothing"
    )
    text = torch.randn(n, s, 5 * width, generator=torch.Generator().manual_seed(2)).half()
    key, value = text[..., width : 2 * width], text[..., 4 * width :]
    check(q, key, value, heads)
    check(q, key[:1].expand(n, -1, -1), value[:1].expand(n, -1, -1), heads)  # one text for all rows: a stride of 0
    check(q.transpose(0, 1).contiguous().transpose(0, 1), key, value, heads)  # positions outermost
    around = torch.full((n, t, 2 * width), 7.0).half()
    out = around[..., width:]
    assert attention(q, key, value, heads, out=out) is out
    assert torch.equal(out, attention(q, key, value, heads)) and (around[..., :width] == 7).all(), "nothing beside it"


@pytest.mark.parametrize("dtype", [F32, F16])
def test_a_row_is_the_same_alone(dtype):
    """The exact contract: a row's bits do not depend on its company."""
    q, k, v = qkv(5, 100, 77, 2, 40, dtype)
    together = attention(q, k, v, 2)
    for i in (0, 3, 4):
        assert torch.equal(together[i : i + 1], attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], 2))


def test_a_wrong_kernel_would_be_noticed():
    """The tolerance is far below what usual mistakes do: no scale, a key too many, a neighbour's head."""
    q, k, v = qkv(1, 70, 77, 2, 40, F16)
    truth, allowed = reference(q, k, v, 2), tolerance(q, k, v, 2)
    padded_k, padded_v = (torch.cat([x, torch.zeros_like(x[:, :1])], 1) for x in (k, v))
    wrong = {
        "no scale": attention(q * 8, k, v, 2) - attention(q, k, v, 2) + truth,
        "scaled by 1/d": reference(q / math.sqrt(40), k, v, 2),
        "one masked key seen": reference(q, padded_k, padded_v, 2),
        "heads rolled": reference(q, k, v.roll(40, -1), 2),
        "last 8 columns of a head lost": reference(q, k * (torch.arange(80) % 40 < 32), v, 2),
    }
    for mistake, result in wrong.items():
        assert ((result - truth).abs() > allowed).double().mean() > 0.3, mistake


def test_nothing_to_do():
    q, k, v = qkv(0, 5, 3, 1, 40, F16)
    assert attention(q, k, v, 1).shape == (0, 5, 40)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda q, k, v: (q[..., 1:], k, v, 2), "q: starts 2 bytes"),
        (lambda q, k, v: (torch.randn(1, 9, 81).half()[..., :80], k, v, 2), "strides of 0 and 81"),
        (lambda q, k, v: (q, k[..., ::2], v[..., ::2], 2), "last stride is 2"),
        (lambda q, k, v: (q, k, v, 3), "a head must be one of 32, 40, 64, 80, 128, 160 wide"),
        (lambda q, k, v: (q, k, v, 5), "80 wide over 5 heads"),
        (lambda q, k, v: (q, k, v, 0), "80 wide over 0 heads"),
        (lambda q, k, v: (q, k, v.float(), 2), "not all float16"),
        (lambda q, k, v: (q.double(), k.double(), v.double(), 2), "float64"),
        (lambda q, k, v: (q, k[:, :0], v[:, :0], 2), "1 or more"),
        (lambda q, k, v: (q, k, v[:, 1:], 2), "not [n, t, c]"),
        (lambda q, k, v: (q[0], k, v, 2), "not [n, t, c]"),
        (lambda q, k, v: (q.expand(2, -1, -1), k, v, 2), "rows and width must agree"),
        (
            lambda q, k, v: (torch.empty_strided((1, 9, 80), (0, 2**28, 1), dtype=F16, device="meta"), k, v, 2),
            "31 bits",
        ),
    ],
)
def test_refused(change, says):
    wide = torch.randn(1, 9, 168).half()
    q, k, v = (wide[..., :80].clone() if says.startswith("a head") else wide[..., :80] for _ in range(3))
    if "last stride" in says:
        k = v = wide[..., :160]
    if "starts" in says:
        q = wide[..., :81]
    with pytest.raises(ValueError) as refused:
        attention(*change(q, k, v))
    assert says in str(refused.value)


def test_a_wrong_out_is_refused():
    q, k, v = qkv(1, 9, 9, 1, 40, F16)
    with pytest.raises(ValueError, match="out is torch.float32"):
        attention(q, k, v, 1, out=torch.empty(1, 9, 40))


def test_tiles_never_know_the_number_of_rows():
    assert choose(40, 90, 4096).rows == 128 and choose(40, 90, 64).rows == 64
    assert choose(40, 89, 4096) == choose(40, 80, 4096) == choose(40, 103, 4096), (
        "unknown architectures: the plain ones"
    )


def test_floor():
    """The step budget's own figure: five self-attentions at 64x64 of two rows take 272 us at 790 TFLOP/s."""
    assert 5 * floor(2, 4096, 4096, 8, 40, copy_gbs=4300, matrix_tflops=790) == pytest.approx(272, abs=0.5)
    moved, operations = work(2, 4096, 77, 8, 40)
    assert moved == 2 * 2 * 2 * (4096 + 77) * 320 and operations == 4 * 2 * 4096 * 77 * 320
    assert floor(2, 4096, 77, 8, 40, copy_gbs=4300, matrix_tflops=790) == pytest.approx(moved / 4300e3), "bytes rule"
    assert work(1, 3, 3, 1, 40, causal=True)[1] == 4 * 40 * 6 and work(1, 5, 3, 1, 40, causal=True)[1] == 4 * 40 * 12
