"""The artifact: a checkpoint folder with its exported graphs beside the weights, and a manifest that vouches for both.

The graphs copy no weights: their external data points into the checkpoint's own safetensors files. The manifest
holds the SHA-256 of every file that a server reads, because a flipped bit in a safetensors file loads silently.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.backend import F32
from pipeline.errors import CheckpointError
from pipeline.spec import Spec, read_spec

MANIFEST = "manifest.json"
FORMAT = 1
GRAPHS = {
    "text_encoder": "text_encoder/model.onnx",
    "unet": "unet/model.onnx",
    "vae_decoder": "vae/decoder.onnx",
    "vae_encoder": "vae/encoder.onnx",
}


@dataclass(frozen=True)
class Artifact:
    folder: Path
    digest: str  # SHA-256 of the manifest, hence of everything it vouches for
    spec: Spec
    preview: F32  # [3, C + 1]: latents and 1 to red, green, blue in 0..1, fitted at export

    @property
    def id(self) -> str:
        return self.folder.name

    def graph(self, name: str) -> Path:
        return self.folder / GRAPHS[name]


def is_artifact(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def open_artifact(folder: Path) -> Artifact:
    """Read and verify. Errors: CheckpointError naming the file, the reason and the command that mends it."""
    folder = folder.resolve()
    text = (folder / MANIFEST).read_bytes()
    mend = f"run `make onnx MODEL={folder}` to export it again"
    try:
        manifest = json.loads(text)
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{folder / MANIFEST} has format {manifest['format']!r}, not {FORMAT}; {mend}")
        files: dict[str, dict[str, Any]] = manifest["files"]
        preview = np.array(manifest["preview"]["matrix"], np.float32)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged ({error!r}); {mend}") from None
    for name in GRAPHS.values():
        if name not in files:
            raise CheckpointError(f"{folder / MANIFEST} does not name {name}; {mend}")
    for name, entry in files.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise CheckpointError(f"{folder / MANIFEST} names {name!r}, which lies outside its folder; {mend}")
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; {mend}")
    for (name, entry), digest in zip(files.items(), digests([folder / n for n in files]), strict=True):
        if digest != entry.get("sha256"):
            raise CheckpointError(f"{folder / name} is not the file that the manifest vouches for; {mend}")
    spec = read_spec(folder)
    if json.loads(json.dumps(spec.to_json())) != manifest.get("spec"):
        raise CheckpointError(f"{folder / MANIFEST} was made for another spec than its configs give; {mend}")
    if preview.shape != (3, spec.vae.latent_channels + 1):
        raise CheckpointError(f"{folder / MANIFEST} has a preview of shape {preview.shape}; {mend}")
    return Artifact(folder, hashlib.sha256(text).hexdigest(), spec, preview)


def digests(paths: list[Path]) -> list[str]:
    """SHA-256 of each file, several at once: hashing lets go of the interpreter lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(_digest, paths))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
