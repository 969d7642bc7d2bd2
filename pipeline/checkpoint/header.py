"""Where the tensors of a safetensors file lie, from its header alone."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError
from pipeline.files import parse_json, regular_size

# Bytes; an SD checkpoint's has 0.3 million. The format admits 100 million, which as Python objects fill gigabytes.
_LARGEST_HEADER = 16 << 20
_MOST_TENSORS, _LONGEST_NAME, _MOST_SIDES = 10_000, 256, 8  # SDXL has 2,500, of at most 120 characters and 4 sides
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # of an element of the types that weights have

_PICKLE = "it is a pickle under another name; a pickle can run code, so latentd reads only safetensors"
_OTHER_KINDS = {  # by a file's first bytes, which as a header's length are absurd
    b"version ": "it is a Git LFS pointer; fetch the file itself",
    b"PK\x03\x04": _PICKLE,  # torch.save's, a zip of pickles
    **{bytes((0x80, protocol)): _PICKLE for protocol in range(2, 6)},
    b"<!DOCTYP": "it is a web page",
    b"<html>": "it is a web page",
    b"GGUF": "it is a GGUF file",
}


@dataclass(frozen=True)
class StoredTensor:
    path: Path
    dtype: str  # safetensors' name: "F16", ...
    shape: tuple[int, ...]
    offset: int  # bytes from the file's start
    length: int
    turned: bool = False  # a matrix that lies there transposed: `shape` is that of the network's


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Read a file's header: every tensor by its own name, and the metadata.

    Errors: CheckpointError naming the file for one whose header is no header, or whose bytes are not exactly those
    that its header speaks of.
    """
    try:
        whole = regular_size(path)
        with path.open("rb") as file:
            start = file.read(8)
            (size,) = struct.unpack("<Q", start)
            if size > min(_LARGEST_HEADER, whole - 8):
                kind = next((kind for first, kind in _OTHER_KINDS.items() if start.startswith(first)), "")
                too_long = f"a header of {size} bytes in a file of {whole}; at most {_LARGEST_HEADER}"
                raise ValueError(kind or too_long)
            header = parse_json(file.read(size))
        metadata = header.pop("__metadata__", {})
        if len(header) > _MOST_TENSORS:
            raise ValueError(f"it has {len(header)} tensors; latentd reads at most {_MOST_TENSORS}")
        tensors = {name: _tensor(path, 8 + size, name, entry) for name, entry in header.items()}
        _check_layout(list(tensors.values()), 8 + size, whole)
        return tensors, {str(key): str(value) for key, value in metadata.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not there") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None


def _tensor(path: Path, base: int, name: str, entry: dict[str, Any]) -> StoredTensor:
    dtype, shape, (start, end) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"a name of {len(name)} characters, {name[:64]}...; latentd reads at most {_LONGEST_NAME}")
    numbers = (*shape, start, end)
    if len(shape) > _MOST_SIDES or start > end or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
        raise ValueError(f"{name} has shape {shape[:_MOST_SIDES]} and offsets {start}, {end}")
    if dtype in BYTES and math.prod(shape) * BYTES[dtype] != end - start:
        raise ValueError(f"{name} has shape {list(shape)} in {dtype}, and {end - start} bytes")
    return StoredTensor(path, dtype, shape, base + start, end - start)


def _check_layout(tensors: list[StoredTensor], at: int, whole: int) -> None:
    """Check the format's own rule: tensors follow each other without holes up to the file's end."""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.length)):
        if tensor.offset != at:
            raise ValueError(f"a hole or an overlap at byte {min(at, tensor.offset)}")
        at += tensor.length
    if at != whole:
        raise ValueError(f"it has {whole} bytes, and its header speaks of {at}")
