"""The list of a step's operations against the table that was derived by hand."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from benchmarks.gpu.subjects.networks import SD15, SD21
from benchmarks.gpu.subjects.operations import Operation, operations

# Dense bf16 FLOP/s and bytes/s of an H200, as the table has them.
MATRIX, MEMORY = 790e12, 4.3e12
counted = cache(operations)


@pytest.mark.parametrize(("rows", "gflop", "floor_ms"), [(2, 1607, 2.09), (8, 6426, 8.15), (32, 25705, 32.55)])
def test_a_step_of_sd15_is_264_operations(rows: int, gflop: int, floor_ms: float) -> None:
    found = counted(SD15, rows)
    assert len(found) == 264
    assert round(sum(op.flops for op in found) / 1e9) == gflop
    assert round(1e3 * sum(op.floor(MATRIX, MEMORY) for op in found), 2) == floor_ms


# M x N x K over two rows, how many, and their GFLOP together.
@pytest.mark.parametrize(
    ("name", "count", "gflop"),
    [
        ("attn self @64x64", 5, 214.7),
        ("attn cross @64x64", 5, 4.0),
        ("conv3x3 @32x32", 10, 196.3),
        ("conv3x3 @8x8", 14, 64.2),
        ("conv3x3 up @64x64", 1, 60.4),
        ("conv3x3 down @8x8", 1, 3.8),
        ("geglu in @16x16", 5, 67.1),
        ("geglu out @64x64", 5, 33.6),
        ("qkv self @16x16", 5, 25.2),
        ("q cross @8x8", 1, 0.4),
        ("kv cross (text, hoistable)", 16, 5.9),
        ("temb", 22, 0.1),
    ],
)
def test_what_an_operation_is_for(name: str, count: int, gflop: float) -> None:
    mine = [op for op in counted(SD15, 2) if op.name == name]
    assert len(mine) == count
    assert round(sum(op.flops for op in mine) / 1e9, 1) == gflop


def test_shapes() -> None:
    found = Counter((op.name, op.m, op.n, op.k, op.heads) for op in counted(SD15, 2))
    assert found["attn self @64x64", 8192, 4096, 40, 8] == 5
    assert found["conv3x3 @8x8", 128, 1280, 23040, 0] == 3
    assert found["geglu in @32x32", 2048, 5120, 640, 0] == 5
    (first, *_) = [op for op in counted(SD15, 2) if op.kind == "conv"]
    assert (first.inside, first.kernel, first.m, first.k) == ((4, 64, 64), (3, 1, 1), 8192, 36)


def test_sd21_has_linear_projections_and_heads_of_64() -> None:
    found = counted(SD21, 2)
    assert len(found) == 264 and {op.k for op in found if op.heads} == {64}
    assert sum(op.name.startswith("conv1x1") for op in found) == 14, "skips alone"


def test_a_floor_is_the_larger_of_arithmetic_and_weights() -> None:
    op = Operation("linear", "x", m=2, n=1000, k=1000, rows=2)
    assert op.floor(matrix=1e12, memory=1e9) == pytest.approx(2e6 / 1e9), "reading two million bytes"
    assert op.floor(matrix=1e6, memory=1e12) == pytest.approx(4e6 / 1e6)
