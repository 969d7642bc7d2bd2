"""What 8-bit products would gain: those of an SD 1.5 step as e4m3 through cuBLAS, beside the same in float16.

Nothing serves in fp8; these are rows of their own. A product's inputs are given in 8 bits, as norms and GEGLU could
write them, and a 3x3 convolution's as columns: so a gain is the most there could be. One scale a tensor (Micikevicius
et al. 2022, section 3): its largest magnitude becomes 448. Sums to the end in float32, or as Hopper's matrix units
add fastest, with fewer bits (`use_fast_accum`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.check import AbsentError, Case, Check, read_rows
from benchmarks.gpu.networks import unet_spec
from benchmarks.gpu.operations import Operation, operations
from benchmarks.gpu.timing import error, in_graph, sets

_ROWS = (2, 32)
_MODES = ("float16", "fp8", "fp8, fast sums")
_EIGHT_BITS = torch.float8_e4m3fn
_COMPARED = 1024  # positions of a product whose error is told
_MULTIPLE = 16  # of a product's n and k, which cuBLAS demands in 8 bits
# Of standard normal numbers: e4m3 keeps 3 bits, so each is off by 2.6% of itself, and a product's sum by as much as two
# such errors: 3.7e-2, measured on a CPU. A wrong scale or layout is off by 1.
_TOLERANCE = 6e-2


def cases(check: Check) -> Iterator[Case]:
    for rows in _ROWS[: 1 if check.dry else None]:
        counts = Counter(op for op in operations(unet_spec(check, "SD 1.5"), rows) if _fits(op))
        for op in sorted(counts, key=lambda op: -counts[op] * op.flops)[: 4 if check.dry else None]:
            yield Case(f"{rows} rows {_case(op)}", partial(_product, check, op, counts[op]))
        yield Case(f"{rows} rows, sum", partial(_sum, check, rows, counts))


def _fits(op: Operation) -> bool:
    return op.kind != "attention" and op.n % _MULTIPLE == op.k % _MULTIPLE == 0


def _case(op: Operation) -> str:
    return f"{op.rows} rows {op.m}x{op.n}x{op.k}"


def _product(check: Check, op: Operation, count: int) -> None:
    if not check.dry and torch.cuda.get_device_capability() < (8, 9):
        raise AbsentError("products in 8 bits need sm_89 or later")
    floor = op.floor(*check.ceilings())
    moved = 2 * (op.m * op.n + op.n * op.k + op.m * op.k)  # of a set in float16: 8 bits have no fewer sets
    for mode in _MODES:
        runs = [_run(check, op, mode) for _ in range(sets(moved))]
        note = f"{count} times; the floor is float16's"
        check.time(op.name, _case(op), mode, in_graph(runs, seconds=0.04), flops=op.flops, floor=floor, note=note)
        del runs
    x, weight = _random(check, min(op.m, _COMPARED), op.k), _random(check, op.n, op.k)
    right = x.float() @ weight.float().t()
    for mode in _MODES[1:]:
        far = error(_eight_bits(x, weight, mode)(), right)
        check.expect(far < _TOLERANCE, f"{op.name} error", _case(op), mode, far, f"tolerance {_TOLERANCE:g}")


def _random(check: Check, *shape: int) -> Tensor:
    return torch.randn(*shape, device=check.device, dtype=check.dtype)


def _run(check: Check, op: Operation, mode: str) -> Callable[[], Tensor]:
    x, weight = _random(check, op.m, op.k), _random(check, op.n, op.k)
    return (lambda: F.linear(x, weight)) if mode == "float16" else _eight_bits(x, weight, mode)


def _eight_bits(x: Tensor, weight: Tensor, mode: str) -> Callable[[], Tensor]:
    """x [m, k], weight [n, k] -> [m, n] in float16."""
    (x, x_scale), (weight, weight_scale) = _scaled(x), _scaled(weight)
    fast = "fast" in mode
    return lambda: torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage] (torch has no other name for it)
        x, weight.t(), scale_a=x_scale, scale_b=weight_scale, out_dtype=torch.float16, use_fast_accum=fast
    )


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """In 8 bits, and the float32 number that undoes the scale."""
    scale = x.abs().amax().float() / torch.finfo(_EIGHT_BITS).max
    return (x.float() / scale).to(_EIGHT_BITS), scale


def _sum(check: Check, rows: int, counts: Counter[Operation]) -> None:
    """Of the products that all ways have taken: from the table, so that a process that was begun again has all."""
    found = {
        (row["what"], row["case"], row["mode"]): float(row["p50"])
        for row in read_rows(check.files[0])
        if row["section"] == "fp8" and row["date"] == check.stamp["date"] and row["unit"] == "us"
    }
    done = {op: n for op, n in counts.items() if all((op.name, _case(op), mode) in found for mode in _MODES)}
    floor = sum(n * op.floor(*check.ceilings()) for op, n in done.items())
    note = f"{sum(done.values())} products, inputs given" + (
        f", {len(counts) - len(done)} shapes missing" * (done != counts)
    )
    for mode in _MODES:
        total = sum(n * found[op.name, _case(op), mode] for op, n in done.items())
        check.row("sum", f"{rows} rows", mode, "us", [total], floor=1e6 * floor, note=note)
