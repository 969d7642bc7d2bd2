"""Where the tensors of a safetensors file lie, from its header alone."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.files import known_name, weight_files
from pipeline.errors import CheckpointError

_LARGEST_HEADER = 100 << 20  # the limit of the safetensors library itself
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # of an element of the types that weights have


@dataclass(frozen=True)
class StoredTensor:
    path: Path
    dtype: str  # safetensors' name: "F16", ...
    shape: tuple[int, ...]
    offset: int  # bytes from the file's start
    length: int


def stored_tensors(checkpoint: Path, part: str) -> dict[str, StoredTensor]:
    """Every tensor of a part, by the name that the networks give it. Errors: CheckpointError naming the file."""
    found: dict[str, StoredTensor] = {}
    for path in weight_files(checkpoint, part):
        tensors, _ = read_header(path)
        found |= {name: tensor for key, tensor in tensors.items() if (name := known_name(part, key))}
    return found


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Every tensor by its own name, and the metadata.

    Errors: CheckpointError naming the file for one whose header is no header, or whose bytes are not exactly those
    that its header speaks of.
    """
    try:
        with path.open("rb") as file:
            whole = path.stat().st_size
            start = file.read(8)
            if start == b"version ":
                raise ValueError("it is a Git LFS pointer; fetch the file itself")
            (size,) = struct.unpack("<Q", start)
            if size > min(_LARGEST_HEADER, whole - 8):
                raise ValueError(f"a header of {size} bytes in a file of {whole}; at most {_LARGEST_HEADER}")
            header = json.loads(file.read(size))
        metadata = header.pop("__metadata__", {})
        tensors = {name: _tensor(path, 8 + size, name, entry) for name, entry in header.items()}
        _check_layout(list(tensors.values()), 8 + size, whole)
        return tensors, {str(key): str(value) for key, value in metadata.items()}
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None


def _tensor(path: Path, base: int, name: str, entry: dict[str, Any]) -> StoredTensor:
    dtype, shape, (start, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)) or start > end:
        raise ValueError(f"{name} has shape {shape} and offsets {start}, {end}")
    if dtype in BYTES and math.prod(shape) * BYTES[dtype] != end - start:
        raise ValueError(f"{name} has shape {list(shape)} in {dtype}, and {end - start} bytes")
    return StoredTensor(path, dtype, shape, base + start, end - start)


def _check_layout(tensors: list[StoredTensor], at: int, whole: int) -> None:
    """The format's own rule: tensors follow each other without holes up to the file's end."""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.length)):
        if tensor.offset != at:
            raise ValueError(f"a hole or an overlap at byte {min(at, tensor.offset)}")
        at += tensor.length
    if at != whole:
        raise ValueError(f"it has {whole} bytes, and its header speaks of {at}")
