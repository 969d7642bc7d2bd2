"""Our attention at every shape of SD 1.5 and SD 2.1, beside cuDNN's and flash: error and useful TFLOP/s.

Shapes with a gate first. q, k and v lie as the network makes them: slices of one product. The error is to float64, on
the first and the last row; the last row alone must have the very same bits. Which of the three serves a shape is
written in engines/cuda/choices.py, from a row `fastest` of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.frame import ahead
from benchmarks.gpu.frame.here import needed
from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.frame.timing import error, in_graph, sets

# Weights of a row are rounded to the type of the values before the second product, values and result too: each adds a
# relative half of 2^-10 at float16, 2^-7 at bfloat16, at worst; they are independent, so together less than double.
_TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2, torch.float32: 1e-5}
_BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


@dataclass(frozen=True)
class Shape:
    rows: int
    t: int  # queries
    s: int  # keys
    heads: int
    d: int

    @property
    def what(self) -> str:
        return "self" if self.t == self.s else "cross"

    @property
    def case(self) -> str:
        return f"{self.rows} rows {self.t}x{self.s} h{self.heads} d{self.d}"

    @property
    def flops(self) -> float:
        return 4.0 * self.rows * self.heads * self.t * self.s * self.d

    @property
    def moved(self) -> float:
        return 2.0 * 2 * self.rows * self.heads * (self.t + self.s) * self.d


SD15 = ((4096, 8, 40), (1024, 8, 80), (256, 8, 160), (64, 8, 160))  # positions, heads, width of a head
SD21 = ((4096, 5, 64), (1024, 10, 64), (256, 20, 64), (64, 20, 64))
_GATES = (
    Shape(32, 4096, 4096, 8, 40),
    Shape(2, 4096, 4096, 8, 40),
    Shape(8, 4096, 4096, 8, 40),
    Shape(32, 4096, 4096, 5, 64),
    Shape(16, 4096, 4096, 5, 64),
    Shape(2, 4096, 4096, 5, 64),
)
CAUSAL = Shape(2, 77, 77, 12, 64)  # the text encoder's
_OTHER_WIDTHS = (Shape(8, 4096, 4096, 8, 32), Shape(8, 4096, 4096, 8, 128), Shape(2, 16384, 16384, 8, 40))


def shapes() -> list[Shape]:
    """List the shapes, those with a target first, then what a step spends most on."""
    listed = list(_GATES)
    for rows in (2, 32, 8):
        for t, heads, d in (*SD15, *SD21):
            listed += [Shape(rows, t, t, heads, d), Shape(rows, t, 77, heads, d)]
    return list(dict.fromkeys([*listed, *_OTHER_WIDTHS]))


def cases(report: Report) -> Iterator[Case]:
    torch.backends.cuda.matmul.allow_tf32 = False
    all_of_them = shapes()
    if report.dry:
        few = (all_of_them[0], Shape(2, 64, 77, 2, 64))
        all_of_them = [replace(shape, rows=2, heads=2, t=40, s=40 if shape.what == "self" else 21) for shape in few]
    yield ahead.case(report, "attention")
    for shape in all_of_them:
        took: dict[str, float] = {}
        yield Case(f"{shape.case} ours", partial(_ours, report, shape, took))
        yield Case(f"{shape.case} libraries", partial(_libraries, report, shape, took))
    yield Case("causal", partial(causal, report))
    # The interpreter multiplies bfloat16 wrong, so this is compared nowhere but here.
    for shape in [] if report.dry else all_of_them:
        if shape.rows == 2:
            yield Case(f"{shape.case} bf16", partial(compare, report, shape, torch.bfloat16))


def _inputs(report: Report, shape: Shape, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Make q [n, t, heads d], k and v [n, s, heads d]: slices, as one matrix product leaves them."""
    width = shape.heads * shape.d
    if shape.t == shape.s:
        fused = torch.randn(shape.rows, shape.t, 3 * width, device=report.device).to(dtype or report.dtype)
        q, k, v = fused.chunk(3, dim=-1)
        return q, k, v
    q = torch.randn(shape.rows, shape.t, width, device=report.device).to(dtype or report.dtype)
    fused = torch.randn(shape.rows, shape.s, 2 * width, device=report.device).to(dtype or report.dtype)
    k, v = fused.chunk(2, dim=-1)
    return q, k, v


def _right(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Compute softmax(q k^T / sqrt(d)) v in float64; head by head where the scores of all would be gigabytes."""
    if heads > 1 and q.shape[1] * k.shape[1] > 1 << 22:
        parts = [x.unflatten(-1, (heads, -1)) for x in (q, k, v)]
        each = [_right(parts[0][:, :, h], parts[1][:, :, h], parts[2][:, :, h], 1, causal) for h in range(heads)]
        return torch.cat(each, dim=-1)
    q, k, v = (x.double().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def compare(report: Report, shape: Shape, dtype: torch.dtype) -> None:
    """Compare on fresh inputs, into a poisoned output; then a row alone against the same row in company."""
    kernel, mode = needed("kernels.attention", "attention"), "ours bf16" if dtype == torch.bfloat16 else "ours"
    q, k, v = _inputs(report, shape, dtype)
    out = torch.full(q.shape, float("nan"), device=report.device, dtype=dtype)
    kernel(q, k, v, shape.heads, out=out)
    ends = [0, shape.rows - 1]
    far = max(error(out[i : i + 1], _right(q[i : i + 1], k[i : i + 1], v[i : i + 1], shape.heads)) for i in ends)
    good = far < _TOLERANCE[dtype] and bool(out.isfinite().all())
    report.expect(good, f"{shape.what} error", shape.case, mode, far, f"tolerance {_TOLERANCE[dtype]:g}")
    alone = kernel(q[-1:], k[-1:], v[-1:], shape.heads)
    same = torch.equal(alone[0], out[-1])
    report.expect(same, f"{shape.what} alone", shape.case, mode, error(alone[0], out[-1]), "equal bits expected")


def launch(report: Report, shape: Shape, dtype: torch.dtype, *, causal: bool = False) -> Tensor:
    """Launch it, so that it is compiled; what is compiled depends on no number of rows."""
    kernel, shape = needed("kernels.attention", "attention"), replace(shape, rows=1)
    return kernel(*_inputs(report, shape, dtype), shape.heads, causal=causal)


def _ours(report: Report, shape: Shape, took: dict[str, float]) -> None:
    kernel = needed("kernels.attention", "attention")
    compare(report, shape, report.dtype)
    took["ours"] = _timed(report, shape, "ours", lambda q, k, v: kernel(q, k, v, shape.heads))


def _libraries(report: Report, shape: Shape, took: dict[str, float]) -> None:
    """Time each library on the same inputs; the fastest of all is a row of its own."""
    for mode, backend in _BACKENDS.items():

        def run(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend = backend) -> Tensor:
            q, k, v = (x.unflatten(-1, (shape.heads, -1)).transpose(1, 2) for x in (q, k, v))
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

        try:
            took[mode] = _timed(report, shape, mode, run)
        except RuntimeError as refused:  # in words of each library's own
            if not report.dry:
                torch.cuda.synchronize()  # raises again what is the device's
            note = f"torch has no kernel for it: {str(refused).strip().splitlines()[:1]}"
            report.row(shape.what, shape.case, mode, "", [], status="absent", note=note[:200])
    if "ours" in took:
        best = min(took, key=lambda mode: took[mode])
        note = f"{took['ours'] / took[best]:.3f} times as fast as ours; ({shape.d}, {shape.t}, {shape.s}): {best!r}"
        report.row("fastest", shape.case, best, "us", [1e6 * took[best]], note=note)


def _timed(report: Report, shape: Shape, mode: str, run: Callable[..., Tensor]) -> float:
    every = [_inputs(report, shape) for _ in range(sets(shape.moved))]
    seconds = in_graph([partial(run, *one) for one in every], seconds=0.05)
    return report.time(shape.what, shape.case, mode, seconds, flops=shape.flops, moved=shape.moved)


def causal(report: Report) -> None:
    kernel = needed("kernels.attention", "attention")
    shape = Shape(1, 21, 21, 2, 32) if report.dry else CAUSAL
    q, k, v = _inputs(report, shape)
    out = torch.full(q.shape, float("nan"), device=report.device, dtype=q.dtype)
    kernel(q, k, v, shape.heads, causal=True, out=out)
    far = error(out, _right(q, k, v, shape.heads, causal=True))
    report.expect(far < _TOLERANCE[q.dtype], "causal error", shape.case, "ours", far)
    run = partial(kernel, q, k, v, shape.heads, causal=True)
    report.time("causal", shape.case, "ours", in_graph([run], seconds=0.03), flops=shape.flops / 2, moved=shape.moved)
