"""Ways in which one checkpoint lies on a disk, and what a folder looks like from outside."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file

from pipeline.checkpoint.parts import STEMS

PATHS = {part: f"{part}/{stem}.safetensors" for part, stem in STEMS.items()}
TEXT, UNET, VAE = (PATHS[part] for part in ("text_encoder", "unet", "vae"))


def shard(checkpoint: Path, part: str, variant: str = "") -> Path:
    """Turn a part's one file into a.safetensors, b.safetensors and their index, as large models are published."""
    path = checkpoint / PATHS[part]
    weights = load_file(path)
    path.unlink()
    places = {name: f"{'ab'[number % 2]}.safetensors" for number, name in enumerate(sorted(weights))}
    for place in set(places.values()):
        save_file({name: tensor for name, tensor in weights.items() if places[name] == place}, path.with_name(place))
    index = path.with_name(f"{path.name}.index{variant}.json")
    index.write_text(json.dumps({"weight_map": places}))
    return index


def hub_cache(checkpoint: Path, hub: Path) -> Path:
    """Copy a checkpoint as a model hub's client keeps it: blobs named by content, a snapshot of links to them."""
    (hub / "blobs").mkdir(parents=True)
    snapshot = hub / "snapshots" / checkpoint.name
    for path in (path for path in checkpoint.rglob("*") if path.is_file()):
        blob, link = hub / "blobs" / sha256(path), snapshot / path.relative_to(checkpoint)
        blob.write_bytes(path.read_bytes())
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(folder: Path) -> dict[str, str]:
    """Hash every file below, by its name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in paths}


def state(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return what a write anywhere below would change: of folders too, links as links."""
    entries = {path: path.lstat() for path in (folder, *folder.rglob("*"))}
    return {str(path): (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in entries.items()}


def write_tensors(path: Path, tensors: Mapping[str, tuple[str, list[int], bytes]], pad: int = 0) -> None:
    """Write a safetensors file in the order given: dtype, shape and bytes by name.

    The first lies `pad` bytes behind a multiple of 8; the format's own library would sort and align them.
    """
    header: dict[str, object] = {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + pad)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))
