"""Normalisation, GEGLU, the guided step, the pixels: error, time and share of the floor.

Inputs are random and fresh, outputs poisoned, the reference is float64; the last row alone must have the same bits as
in company. torch's time is that of its own operations; of torch.compile, of the plain formula at the largest shapes.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.frame import ahead
from benchmarks.gpu.frame.here import needed
from benchmarks.gpu.frame.report import Case, Report
from benchmarks.gpu.frame.timing import error, in_graph, on_cpu, sets

# One rounding of the result to its type, and inside geglu_linear none but that one: half of 2^-10, 2^-7 at worst.
_TOLERANCE = {torch.float16: 6e-4, torch.bfloat16: 5e-3, torch.float32: 2e-6}
ROWS = (32, 2, 8)


@dataclass(frozen=True)
class Work:
    """Holds one kernel at one shape. `make(rows, dtype)` gives random inputs, with a row for each at `rowwise`."""

    what: str
    shape: str
    make: Callable[[int, torch.dtype], tuple[Tensor, ...]]
    kernel: Callable[..., Callable[..., Tensor]]  # called late: what is not written is told in its own case
    plain: Callable[..., Tensor]  # in torch's terms; in float64 it is the reference
    moved: Callable[[tuple[Tensor, ...], Tensor], float]
    flops: Callable[[int], float] = lambda rows: 0.0
    rowwise: tuple[int, ...] = (0,)
    only: tuple[int, ...] = ROWS  # numbers of rows

    def some(self, inputs: tuple[Tensor, ...], rows: list[int]) -> tuple[Tensor, ...]:
        """Return the inputs with only some rows, laid out in memory as before."""
        return tuple(x[rows] if i in self.rowwise else x for i, x in enumerate(inputs))


def cases(report: Report) -> Iterator[Case]:
    torch.backends.cuda.matmul.allow_tf32 = False
    every = list(works(report))
    yield ahead.case(report, "kernels")
    for rows in (2,) if report.dry else ROWS:
        for work in (work for work in every if rows in work.only):
            yield Case(f"{work.what} {rows} rows {work.shape}", partial(_measure, report, work, rows))
    from benchmarks.gpu.sections import pixels  # the two that are not rows of a network

    yield from pixels.cases(report)
    for work in [] if report.dry else every:
        if 2 in work.only:
            name = f"{work.what} 2 rows {work.shape} bf16"
            yield Case(name, partial(compare, report, work, 2, torch.bfloat16, "ours bf16"))
    seen: set[str] = set()
    for work in every:
        if work.what not in seen and work.what != "geglu_linear":
            seen.add(work.what)
            for rows in (2,) if report.dry else (32, 2):
                yield Case(f"compile {work.what} {rows} rows", partial(_compile, report, work, rows))


def works(report: Report) -> Iterator[Work]:
    def random(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(*shape, device=report.device).to(dtype)

    # Channels and side: the normalisations of SD 1.5's UNet, the widest input of each level too, then of a decoder.
    sides = ((320, 64), (640, 32), (1280, 16), (1280, 8), (960, 64), (1920, 32), (2560, 16), (256, 256), (128, 512))
    for c, side in ((32, 4), (64, 3)) if report.dry else sides:

        def pictures(rows: int, dtype: torch.dtype, c: int = c, side: int = side) -> tuple[Tensor, ...]:
            x = random(rows, c, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
            # A mean beside which the variance is small: E[x^2] - E[x]^2 would show.
            return x + 3, random(c, dtype=dtype) * 0.1 + 1, random(c, dtype=dtype) * 0.1, random(rows, c, dtype=dtype)

        yield Work(
            "group_norm_silu",
            f"{c}x{side}x{side}",
            pictures,
            lambda: _group_norm_silu(needed("kernels.group_norm_silu", "group_norm_silu")),
            _plain_group_norm,
            lambda inputs, out: 2 * out.nbytes,
            rowwise=(0, 3),
            only=ROWS if side < 256 else (2,),
        )
    for t, c in ((5, 40),) if report.dry else ((4096, 320), (1024, 640), (256, 1280)):

        def tokens(rows: int, dtype: torch.dtype, t: int = t, c: int = c) -> tuple[Tensor, ...]:
            x = random(rows, t, c, dtype=dtype)
            return x * 2 + 3, random(c, dtype=dtype) * 0.1 + 1, random(c, dtype=dtype) * 0.1

        def shifted(rows: int, dtype: torch.dtype, t: int = t, c: int = c) -> tuple[Tensor, ...]:
            return *tokens(rows, dtype, t, c), random(c, dtype=dtype)

        def gated(rows: int, dtype: torch.dtype, t: int = t, c: int = c) -> tuple[Tensor, ...]:
            return (random(rows, t, 8 * c, dtype=dtype),)

        def product(rows: int, dtype: torch.dtype, t: int = t, c: int = c) -> tuple[Tensor, ...]:
            x, weight = random(rows, t, c, dtype=dtype), random(8 * c, c, dtype=dtype) * c**-0.5
            return x, weight, random(8 * c, dtype=dtype) * 0.1

        for shape, make in ((f"{t}x{c}", tokens), (f"{t}x{c} shift", shifted)):
            yield Work(
                "layer_norm",
                shape,
                make,
                lambda: _layer_norm(needed("kernels.layer_norm", "layer_norm")),
                _plain_layer_norm,
                lambda inputs, out: 2 * out.nbytes,
            )
        yield Work(
            "geglu",
            f"{t}x{8 * c}",
            gated,
            lambda: needed("kernels.geglu", "geglu"),
            _plain_geglu,
            lambda inputs, out: 3 * out.nbytes,
        )
        yield Work(
            "geglu_linear",
            f"{t}x{8 * c}x{c}",
            product,
            lambda: _geglu_linear(*needed("kernels.geglu", "geglu_linear", "interleave")),
            lambda x, weight, bias: _plain_geglu(F.linear(x, weight, bias)),
            lambda inputs, out: sum(x.nbytes for x in inputs) + out.nbytes,
            flops=lambda rows, t=t, c=c: 2.0 * rows * t * 8 * c * c,
        )


def _group_norm_silu(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
        return kernel(x, weight, bias, _groups(x), 1e-5, shift=shift, silu=True, out=out)

    return run


def _layer_norm(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        return kernel(x, weight, bias, 1e-5, shift=shift, out=out)

    return run


def _geglu_linear(kernel: Callable[..., Tensor], interleave: Callable[..., tuple[Tensor, Tensor]]) -> Callable:
    prepared: dict[int, tuple[Tensor, ...]] = {}

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if weight.data_ptr() not in prepared:  # once a module; the weight is kept, so that its address stays its own
            prepared[weight.data_ptr()] = (*interleave(weight, bias), weight)
        mixed, mixed_bias, _ = prepared[weight.data_ptr()]
        return kernel(x, mixed, mixed_bias)

    return run


def _groups(x: Tensor) -> int:
    return 32 if x.shape[1] % 32 == 0 and x.shape[1] > 64 else 8


def _plain_group_norm(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor) -> Tensor:
    return F.silu(F.group_norm(x + shift[:, :, None, None], _groups(x), weight, bias, 1e-5))


def _plain_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None = None) -> Tensor:
    return F.layer_norm(x if shift is None else x + shift, x.shape[-1:], weight, bias, 1e-5)


def _plain_geglu(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def poisoned(kernel: Callable[..., Tensor], inputs: tuple[Tensor, ...], like: Tensor) -> Tensor:
    """Return what the kernel writes into memory that was not a number before."""
    bad = torch.full_like(like, float("nan"))
    if "out" in inspect.signature(kernel).parameters:
        return kernel(*inputs, out=bad)
    del bad  # the allocator hands the same block out again
    return kernel(*inputs)


def compare(report: Report, work: Work, rows: int, dtype: torch.dtype, mode: str) -> None:
    """Compare on fresh inputs, into poisoned memory; then the last row alone against the same row in company."""
    kernel, case, inputs, ends = work.kernel(), f"{rows} rows {work.shape}", work.make(rows, dtype), [0, rows - 1]
    right = work.plain(*(x.double() for x in work.some(inputs, ends)))
    like = torch.empty((rows, *right.shape[1:]), dtype=dtype, device=report.device)
    got = poisoned(kernel, inputs, like.contiguous(memory_format=torch.channels_last) if like.ndim == 4 else like)
    far = error(got[ends], right)
    good = far < _TOLERANCE[dtype] and bool(got.isfinite().all())
    report.expect(good, f"{work.what} error", case, mode, far, f"tolerance {_TOLERANCE[dtype]:g}")
    alone = kernel(*work.some(inputs, [rows - 1]))[0]
    apart = error(alone, got[-1])
    # The interpreter's products are numpy's, whose bits do depend on how many rows there are.
    same = torch.equal(alone, got[-1]) or (report.dry and apart < 1e-6)
    report.expect(same, f"{work.what} alone", case, mode, apart, "equal bits expected")


def launch(work: Work, rows: int, dtype: torch.dtype) -> Tensor:
    """Launch it, so that it is compiled."""
    return work.kernel()(*work.make(rows, dtype))


def _measure(report: Report, work: Work, rows: int) -> None:
    case = f"{rows} rows {work.shape}"
    try:
        kernel = work.kernel()
        compare(report, work, rows, report.dtype, "ours")
        _timed(report, work, rows, case, "ours", kernel)
    finally:  # torch's figure stands for itself
        _timed(report, work, rows, case, "torch", work.plain)


def _timed(report: Report, work: Work, rows: int, case: str, mode: str, run: Callable[..., Tensor]) -> None:
    first = work.make(rows, report.dtype)
    out = run(*first)
    moved = work.moved(first, out)
    every = [first, *(work.make(rows, report.dtype) for _ in range(sets(moved) - 1))]
    seconds = in_graph([partial(run, *one) for one in every], seconds=0.04)
    report.time(work.what, case, mode, seconds, flops=work.flops(rows), moved=moved)


def _compile(report: Report, work: Work, rows: int) -> None:
    if report.dry:
        on_cpu(lambda: work.plain(*work.make(rows, report.dtype)))
        return
    start = time.monotonic()
    run = torch.compile(work.plain, fullgraph=True, dynamic=False)
    run(*work.make(rows, report.dtype))
    took = time.monotonic() - start
    _timed(report, work, rows, f"{rows} rows {work.shape}", "torch.compile", run)
    print(f"  compiled in {took:.0f} s", flush=True)
