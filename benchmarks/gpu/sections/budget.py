"""Every convolution and matrix product of an SD 1.5 step, through cuDNN and cuBLAS, beside its floor.

A convolution is also timed as the matrix product that it is (im2col given), and an attention through torch's own
choice. At the end: the sum of the libraries' best beside the sum of floors, and what is lost, largest first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.frame.report import Case, Report, read_rows
from benchmarks.gpu.frame.timing import in_graph, sets
from benchmarks.gpu.subjects.networks import unet_spec
from benchmarks.gpu.subjects.operations import Operation, operations

_ROWS = (2, 32, 8)
_SHOWN = 30  # losses of a number of rows


def cases(report: Report) -> Iterator[Case]:
    torch.backends.cudnn.benchmark = True  # the fastest algorithm of each shape, as a server would choose it
    for rows in _ROWS[: 1 if report.dry else None]:
        counts = Counter(operations(unet_spec(report, "SD 1.5"), rows))
        for op in sorted(counts, key=lambda op: -counts[op] * op.flops):
            yield Case(f"{rows} rows {_case(op)}", partial(_operation, report, op, counts[op]))
        yield Case(f"{rows} rows, sum", partial(_sum, report, rows, counts))


def _case(op: Operation) -> str:
    return f"{op.m}x{op.n}x{op.k}" + (f" h{op.heads}" if op.heads else "")


def _operation(report: Report, op: Operation, count: int) -> None:
    floor = op.floor(*report.ceilings())
    for mode, make, size in _ways(report, op):
        runs = [make() for _ in range(sets(size))]
        seconds = in_graph(runs, seconds=0.04)
        what, case = op.name, f"{op.rows} rows {_case(op)}"
        report.time(what, case, mode, seconds, flops=op.flops, floor=floor, note=f"{count} times")


def _ways(report: Report, op: Operation) -> Iterator[tuple[str, Callable[[], Callable[[], Tensor]], float]]:
    """List (mode, what makes one run over inputs of its own, bytes of one set)."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=report.device, dtype=report.dtype)

    def product() -> Callable[[], Tensor]:
        x, weight = random(op.m, op.k), random(op.n, op.k)
        return lambda: F.linear(x, weight)

    def conv() -> Callable[[], Tensor]:
        side, stride, padding = op.kernel
        x = random(op.rows, *op.inside).contiguous(memory_format=torch.channels_last)
        weight = random(op.n, op.inside[0], side, side).contiguous(memory_format=torch.channels_last)
        return lambda: F.conv2d(x, weight, stride=stride, padding=padding)

    def attention() -> Callable[[], Tensor]:
        queries, width = op.m // op.rows, op.heads * op.k
        lengths = (queries, op.n, op.n)
        q, k, v = (random(op.rows, t, width).unflatten(2, (op.heads, op.k)).transpose(1, 2) for t in lengths)
        return lambda: F.scaled_dot_product_attention(q, k, v)

    if op.kind == "attention":
        positions = 2 * (op.m + op.rows * op.n)
        yield "sdpa", attention, 2 * positions * op.heads * op.k
        return
    if op.kind == "conv":
        yield "cudnn", conv, 2 * (op.m * op.n + op.n * op.k + op.rows * op.inside[0] * op.inside[1] * op.inside[2])
    yield "cublas", product, 2 * (op.m * op.n + op.n * op.k + op.m * op.k)


def _sum(report: Report, rows: int, counts: Counter[Operation]) -> None:
    """Add up the table itself, so that a process that was begun again has what the first one measured."""
    best: dict[str, float] = {}
    for row in read_rows(report.files[0]):
        if row["section"] == "budget" and row["date"] == report.stamp["date"] and row["p50"]:
            key = f"{row['what']} {row['case']}"
            # cublas of a convolution has its im2col for nothing: it tells what could be, it is no way to run it.
            if row["mode"] in ("cudnn", "sdpa") or (row["mode"] == "cublas" and "conv3x3" not in key):
                best[key] = min(best.get(key, 1e30), float(row["p50"]))
    matrix, memory = report.ceilings()
    losses, total, floors, missing = [], 0.0, 0.0, 0
    for op, count in counts.items():
        floor, case = 1e6 * op.floor(matrix, memory), f"{op.rows} rows {_case(op)}"
        took = best.get(f"{op.name} {case}")
        if took is None:
            missing += count
            continue
        total, floors = total + count * took, floors + count * floor
        losses.append((count * (took - floor), count * took, op.name, case))
    note = f"{len(list(counts.elements())) - missing} operations, each at its best" + f", {missing} missing" * (
        missing > 0
    )
    report.row("sum", f"{rows} rows", "libraries", "us", [total], floor=floors, note=note)
    for place, (lost, took, name, case) in enumerate(sorted(losses, reverse=True)[:_SHOWN], 1):
        report.row("loss", case, name, "us", [lost], note=f"number {place}: {took:.0f} us in a step")
