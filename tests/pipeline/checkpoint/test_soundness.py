"""The pass over all weights: what is not finite is named, whatever its type and place."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.checkpoint.mapping import Mapping
from pipeline.checkpoint.soundness import check_types, digest_of
from pipeline.checkpoint.weights import named_tensors
from pipeline.errors import CheckpointError
from tests.support.layouts import write_tensors

COUNT = 300_000  # more than is read at once
KINDS = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
SINGLE = float(np.finfo(np.float32).max)
MOST = {"F16": 65504, "BF16": 0x7F7F, "F32": SINGLE, "F64": SINGLE}
LEAST = {**{name: -value for name, value in MOST.items()}, "BF16": 0xFF7F}
INFINITE = {"F16": np.inf, "BF16": 0x7F80, "F32": np.inf, "F64": 3.5e38}
NAN = {"F16": np.nan, "BF16": 0xFFC1, "F32": -np.nan, "F64": np.nan}


def digest(path: Path) -> str:
    return digest_of(named_tensors("unet", [path]).items(), {path: Mapping(path)})


def written(path: Path, dtype: str, number: float, place: int, small: str = "a") -> Path:
    numbers = np.zeros(COUNT, KINDS[dtype])
    numbers[place] = number
    one = np.ones(1, "<f4").tobytes()
    write_tensors(path, {small: ("F32", [1], one), "w": (dtype, [COUNT], numbers.tobytes())})
    return path


@pytest.mark.parametrize("dtype", KINDS)
def test_finite_to_the_last_bit(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "m.safetensors"
    for place in (0, COUNT // 2, COUNT - 1):
        good = {digest(written(path, dtype, number, place)) for number in (MOST[dtype], LEAST[dtype], 0)}
        assert len(good) == 3
        for number in (INFINITE[dtype], NAN[dtype]):
            with pytest.raises(CheckpointError) as caught:
                digest(written(path, dtype, number, place))
            assert str(caught.value).startswith(f"{path}: w holds NaN or infinite numbers")


def test_the_order_in_the_file_does_not_count(tmp_path: Path) -> None:
    parts = {"a": ("F32", [1], b"\0\0\0\0"), "b": ("F16", [2], b"\1\0\1\0"), "c": ("F32", [0], b"")}
    write_tensors(tmp_path / "one", parts)
    write_tensors(tmp_path / "two", dict(reversed(parts.items())), pad=3)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    write_tensors(tmp_path / "two", {"b": parts["a"], "a": ("F16", [2], parts["b"][2]), "c": parts["c"]})
    assert digest(tmp_path / "one") != digest(tmp_path / "two"), "the names are swapped"


def test_types_that_are_not_read(tmp_path: Path) -> None:
    write_tensors(path := tmp_path / "m.safetensors", {"w": ("I64", [1], bytes(8))})
    for look in (digest, lambda path: check_types(named_tensors("unet", [path]).items())):
        with pytest.raises(CheckpointError, match="w is stored as I64; latentd takes F64, F32, F16, BF16"):
            look(path)


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    """Short of a whole number, too."""
    path = written(tmp_path / "m.safetensors", "F32", 1, 0)
    tensors, file = named_tensors("unet", [path]), Mapping(path)
    for size in (path.stat().st_size - 1, 1000):
        with path.open("r+b") as other:
            other.truncate(size)
        with pytest.raises(CheckpointError, match="became shorter while it was read"):
            digest_of(tensors.items(), {path: file})


def test_threads_end_with_a_refusal(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(CheckpointError):
        digest(written(tmp_path / "m.safetensors", "F16", np.nan, 5))
    assert threading.active_count() == before
