"""A mapped file: what may happen to it while it is served, and what is noticed."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.checkpoint.header import read_header
from pipeline.checkpoint.mapping import Mapping
from pipeline.errors import CheckpointError
from tests.support.layouts import write_tensors

NUMBERS = np.arange(1 << 20, dtype=np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "m.safetensors", {"w": ("F32", [1 << 20], NUMBERS.tobytes())})
    return tmp_path / "m.safetensors"


def test_an_array_is_flat_and_shares_the_mapping(path: Path) -> None:
    mapping, tensor = Mapping(path), read_header(path)[0]["w"]
    array = mapping.array(tensor)
    assert array.shape == (1 << 20,) and np.array_equal(array, NUMBERS)
    assert np.shares_memory(array, mapping.array(tensor)) and array.ctypes.data % mmap.PAGESIZE == tensor.offset
    assert len(mapping) == path.stat().st_size and b"".join(mapping.pieces(tensor, 1000)) == NUMBERS.tobytes()


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    _at_another_time(path)


def touched(path: Path) -> None:
    _at_another_time(path)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def _at_another_time(path: Path) -> None:
    """A clock of a few milliseconds may not have ticked since the file was made."""
    now = path.stat()
    os.utime(path, ns=(now.st_atime_ns, now.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [overwritten, touched, truncated, grown])
def test_a_file_that_is_written_to_is_noticed(path: Path, change: Callable[[Path], None]) -> None:
    mapping = Mapping(path)
    mapping.check_unchanged()
    change(path)
    with pytest.raises(CheckpointError) as caught:
        mapping.check_unchanged()
    message = str(caught.value)
    assert message.startswith(f"{path} has been written to since it was loaded") and "rename it" in message


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.rename(path.with_name("elsewhere")),
        lambda path: path.unlink(),
        lambda path: write_tensors(path.with_name("new"), {}) or path.with_name("new").replace(path),
    ],
    ids=["renamed", "deleted", "replaced by a rename"],
)
def test_a_file_whose_name_goes_is_still_there(path: Path, change: Callable[[Path], None]) -> None:
    mapping, tensor = Mapping(path), read_header(path)[0]["w"]
    change(path)
    mapping.check_unchanged()
    assert np.array_equal(mapping.array(tensor), NUMBERS)
    assert next(mapping.pieces(tensor, 8)) == NUMBERS[:2].tobytes()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident pages are read from /proc")
def test_what_is_let_go_comes_back(path: Path) -> None:
    mapping, tensor = Mapping(path), read_header(path)[0]["w"]
    array = mapping.array(tensor)
    assert array.sum(dtype=np.float64) == NUMBERS.sum(dtype=np.float64)
    assert resident(path) > NUMBERS.nbytes * 0.9
    mapping.let_go()
    assert resident(path) == 0
    assert np.array_equal(array, NUMBERS)
    path.unlink()
    mapping.let_go()
    assert np.array_equal(array, NUMBERS)


def resident(path: Path) -> int:
    """Bytes of this process's mappings of a file that are in memory."""
    lines, of_it, total = Path("/proc/self/smaps").read_text().splitlines(), False, 0
    for line in lines:
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            of_it = line.endswith(str(path))
        elif of_it and first == "Rss:":
            total += int(line.split()[1]) << 10
    return total


def test_nothing_that_is_written_to_an_array_reaches_the_file(path: Path) -> None:
    before = path.read_bytes()
    array = Mapping(path).array(read_header(path)[0]["w"])
    array[:] = 0
    assert path.read_bytes() == before


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "it is a pipe"),
        (os.mkdir, "it is a folder"),
        (lambda path: Path(path).touch(), "cannot mmap an empty file"),
        (lambda path: None, "No such file"),
    ],
)
def test_what_cannot_be_mapped(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    make(tmp_path / "w")
    with pytest.raises(CheckpointError) as caught:
        Mapping(tmp_path / "w")
    assert str(caught.value).startswith(str(tmp_path / "w")) and words in str(caught.value)
