"""One variant of each of these kernels under Triton 3.6.0, which torch 2.11 brings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.ahead import compiled

OLDER = Path(sys.prefix, "triton-3.6")  # `make test` puts it there


@pytest.mark.parametrize(
    ("kernel", "variant", "arch"),
    [
        ("layer_norm", "320 fp16", 90),
        ("layer_norm", "1280 shift bf16", 120),
        ("geglu", "geglu_kernel 1280 fp16", 120),
        ("geglu", "5120x1280 128x128 bf16", 90),
        ("group_norm_silu", "held_kernel 1280 @ 256 silu fp16", 90),
        ("group_norm_silu", "parts_kernel 320 @ 4096 shift fp16", 90),
        ("group_norm_silu", "apply_kernel 320 @ 4096 silu bf16", 120),
        ("guided_step", "4x4096 channels-last fp16", 90),
        ("to_uint8", "channels-last fp16", 80),
    ],
)
def test_compiled(kernel: str, variant: str, arch: int) -> None:
    if not (OLDER / "triton").is_dir():
        pytest.fail(f"Triton 3.6.0 is not in {OLDER}: `make test` installs it there")
    rows = compiled(kernel, [(variant, (arch,))], path=OLDER)
    assert rows
    for row in rows:
        assert row["triton"].startswith("3.6.") and not row["faults"], row
        assert 16 in row["st"] or "parts" in row["name"] or "product_kernel" in row["name"], row
        assert "product_kernel" not in row["name"] or (row["cp_async"] == [16] and row["wgmma"]), row
