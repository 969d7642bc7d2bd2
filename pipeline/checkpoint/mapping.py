"""A weights file in memory: mapped, not read, so that what nobody touches costs nothing.

Pages of the mapping are clean: Linux takes them back when it needs them, and `let_go` gives them back at once. They
still count as resident until then, so a load that lets go of what has been packed elsewhere peaks at half the memory.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.checkpoint.header import StoredTensor
from pipeline.errors import CheckpointError
from pipeline.files import regular_size

# Python holds its lock during madvise: 110 to 133 ms for a file of 3.4 GB at once, 10 to 17 ms for a slice of this size
# (2 cores of a Zen 5), and health must answer meanwhile.
_SLICE = 32 << 20
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}  # numpy has no bfloat16


def _turned(flat: NDArray[np.generic], tensor: StoredTensor) -> NDArray[np.generic]:
    rows, columns = tensor.shape
    return np.ascontiguousarray(flat.reshape(columns, rows).T).ravel()


class Mapping:
    """Maps one file, opened once; whoever renames or deletes it afterwards changes nothing here."""

    def __init__(self, path: Path) -> None:
        """Map the file. Errors: CheckpointError where it cannot be mapped."""
        self.path = path
        try:
            regular_size(path)
            self._file = path.open("rb")
            # Private, and nobody writes to it: torch and OpenVINO refuse memory that is read-only.
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be mapped: {error}") from None
        self._seen = self._state()

    def __len__(self) -> int:
        """Count the file's bytes."""
        return len(self._map)

    def pieces(self, tensor: StoredTensor, size: int) -> Iterator[bytes]:
        """Read a tensor's bytes, at most `size` at once, without touching the mapping's pages.

        One that is turned is read whole, so that its bytes are those that a folder would hold. Errors: CheckpointError.
        """
        if tensor.turned:
            whole = b"".join(self.pieces(replace(tensor, turned=False), size))
            turned = _turned(np.frombuffer(whole, _DTYPES[tensor.dtype]), tensor).tobytes()
            yield from (turned[at : at + size] for at in range(0, len(turned), size))
            return
        at, end = tensor.offset, tensor.offset + tensor.length
        while at < end:
            wanted = min(size, end - at)
            try:
                data = os.pread(self._file.fileno(), wanted, at)
            except OSError as error:
                raise CheckpointError(f"{self.path} cannot be read: {error}") from None
            if len(data) < wanted:
                raise CheckpointError(f"{self.path} became shorter while it was read")
            yield data
            at += wanted

    def array(self, tensor: StoredTensor) -> NDArray[np.generic]:
        """Return the tensor as it lies in the file, without a copy unless it is turned: flat; bfloat16 as uint16."""
        kind = np.dtype(_DTYPES[tensor.dtype])
        flat = np.frombuffer(self._map, kind, tensor.length // kind.itemsize, tensor.offset)
        return _turned(flat, tensor) if tensor.turned else flat

    def check_unchanged(self) -> None:
        """Compare size and time. Errors: CheckpointError where somebody has written to the file since it was opened."""
        if self._state() != self._seen:
            raise CheckpointError(
                f"{self.path} has been written to since it was loaded, so its weights may be another model's: restart "
                f"to serve what it holds now; to change a model beneath a server, write a new file and rename it"
            )

    def let_go(self) -> None:
        """Give the pages back; whoever reads them next gets them from the file again."""
        for start in range(0, len(self._map), _SLICE):
            self._map.madvise(mmap.MADV_DONTNEED, start, min(_SLICE, len(self._map) - start))

    def _state(self) -> tuple[int, int]:
        now = os.fstat(self._file.fileno())
        return now.st_size, now.st_mtime_ns
