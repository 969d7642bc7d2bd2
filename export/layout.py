"""Lays a checkpoint out as a folder in diffusers' layout: its small files, and one safetensors file a part.

Folders, shards and single files come out alike, with the names that the networks have. No byte of a weight changes.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from engines.cache import disk
from pipeline.checkpoint.header import BYTES, StoredTensor
from pipeline.checkpoint.opened import Checkpoint
from pipeline.checkpoint.parts import STEMS
from pipeline.checkpoint.weights import Weights

_PIECE = 8 << 20  # bytes in memory at once


def lay_out(checkpoint: Checkpoint, folder: Path) -> dict[str, dict[str, StoredTensor]]:
    """Write the files into `folder`; return where the tensors lie now, by part and name.

    Errors: DiskError, CheckpointError.
    """
    for name, data in checkpoint.small_files().items():
        disk.make((folder / name).parent)
        disk.write(folder / name, data)
    stored = {}
    for part, stem in STEMS.items():
        path = folder / part / f"{stem}.safetensors"
        disk.make(path.parent)
        stored[part] = _write(path, checkpoint.weights, part)
    return stored


def _write(path: Path, weights: Weights, part: str) -> dict[str, StoredTensor]:
    """Write a safetensors file, wide types first, as the format's own library keeps them aligned."""
    order = sorted(weights.tensors(part).items(), key=lambda item: (-BYTES[item[1].dtype], item[0]))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in order:
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at + tensor.length]}
        at += tensor.length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    laid, start = {}, 8 + len(text)
    with disk.written(path) as write:
        write(struct.pack("<Q", len(text)) + text)
        for name, tensor in order:
            laid[name] = StoredTensor(path, tensor.dtype, tensor.shape, start, tensor.length)
            start += tensor.length
            for data in weights.pieces(part, name, _PIECE):
                write(data)
    return laid
