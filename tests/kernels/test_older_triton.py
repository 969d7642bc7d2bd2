"""One variant of each of these kernels under Triton 3.6.0, which torch 2.11 brings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.ahead import each_compiled

OLDER = Path(sys.prefix, "triton-3.6")  # `make test` puts it there


VARIANTS = [
    ("layer_norm", "320 fp16", 90),
    ("layer_norm", "1280 shift bf16", 120),
    ("geglu", "geglu_kernel 1280 fp16", 120),
    ("geglu", "5120x1280 128x128 bf16", 90),
    ("group_norm_silu", "held_kernel 1280 @ 256 silu fp16", 90),
    ("group_norm_silu", "parts_kernel 320 @ 4096 shift fp16", 90),
    ("group_norm_silu", "apply_kernel 320 @ 4096 silu bf16", 120),
    ("guided_step", "4x4096 channels-last fp16", 90),
    ("to_uint8", "channels-last fp16", 80),
]


@pytest.fixture(scope="module")
def compilations() -> list[list[dict[str, Any]]]:
    """Rows of each of VARIANTS, from one process."""
    if not (OLDER / "triton").is_dir():
        pytest.fail(f"Triton 3.6.0 is not in {OLDER}: `make test` installs it there")
    return each_compiled([(kernel, variant, (arch,)) for kernel, variant, arch in VARIANTS], path=OLDER)


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=[f"{kernel} {name}" for kernel, name, _ in VARIANTS])
def test_compiled(number: int, compilations: list[list[dict[str, Any]]]) -> None:
    rows = compilations[number]
    assert rows
    for row in rows:
        assert row["triton"].startswith("3.6.") and not row["faults"], row
        assert 16 in row["st"] or "parts" in row["name"] or "product_kernel" in row["name"], row
        assert "product_kernel" not in row["name"] or (row["cp_async"] == [16] and row["wgmma"]), row
