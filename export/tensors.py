"""Where the tensors of a checkpoint lie in its safetensors files, without reading them."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from model.files import known_name, weight_files
from pipeline.errors import CheckpointError

_LARGEST_HEADER = 100 << 20  # the limit of the safetensors library itself


@dataclass(frozen=True)
class StoredTensor:
    path: Path
    dtype: str  # safetensors' name: "F16", ...
    offset: int  # bytes from the file's start
    length: int


def stored_tensors(checkpoint: Path, part: str) -> dict[str, StoredTensor]:
    """Every tensor of a part, by the name that the networks give it. Errors: CheckpointError naming the file."""
    found: dict[str, StoredTensor] = {}
    for path in weight_files(checkpoint, part):
        try:
            with path.open("rb") as file:
                (size,) = struct.unpack("<Q", file.read(8))
                if size > _LARGEST_HEADER:
                    raise ValueError(f"a header of {size} bytes; at most {_LARGEST_HEADER}")
                header = json.loads(file.read(size))
            for key, entry in header.items():
                if key != "__metadata__" and (name := known_name(part, key)):
                    start, end = entry["data_offsets"]
                    found[name] = StoredTensor(path, entry["dtype"], 8 + size + start, end - start)
        except (OSError, struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from None
    return found
