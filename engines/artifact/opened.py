"""The artifact: a checkpoint folder with its exported graphs beside the weights, and a manifest that vouches for both.

The graphs copy no weights: their external data points into the checkpoint's own safetensors files. The manifest
holds the SHA-256 of every file that a server reads, because a flipped bit in a safetensors file loads silently.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from engines.cache.sealed import Damaged, unsealed
from graphs.wire import external_files
from pipeline.checkpoint.opened import SMALL_FILES
from pipeline.errors import CheckpointError
from pipeline.files import parse_json, read_file, regular_size
from pipeline.spec import Spec, read_spec

MANIFEST = "manifest.json"
FORMAT = 3  # 1 was not sealed, 2 lay in the checkpoint's own folder
_LARGEST = 16 << 20  # bytes of a manifest; one of SD 1.5 has 4 thousand
_LARGEST_GRAPH = 64 << 20  # bytes of a graph, which holds no weights; SD 1.5's UNet has 0.8 million
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

    @property
    def spec_digest(self) -> str:
        """Return the SHA-256 of all that the spec says."""
        return hashlib.sha256(json.dumps(self.spec.to_json(), sort_keys=True).encode()).hexdigest()

    @property
    def id(self) -> str:
        return self.folder.name

    def graph(self, name: str) -> Path:
        return self.folder / GRAPHS[name]

    def weight_bytes(self, name: str) -> int:
        """Return the bytes of the weights beside a graph; the VAE's decoder and encoder share theirs."""
        return sum(path.stat().st_size for path in self.graph(name).parent.glob("*.safetensors"))


def is_artifact(folder: Path) -> bool:
    """Return whether the folder holds a manifest of ours; other tools write files of that name too."""
    try:
        manifest = parse_json(read_file(folder / MANIFEST, _LARGEST))
    except (OSError, ValueError, CheckpointError, RecursionError):
        return False
    return isinstance(manifest, dict) and {"format", "spec", "files", "errors"} <= manifest.keys()


def strange_file(folder: Path) -> str | None:
    """Name a file below `folder` that is no artifact's: one that no manifest of today's format there vouches for."""
    vouched: set[str] = set()
    if is_artifact(folder):
        manifest = parse_json(read_file(folder / MANIFEST, _LARGEST))
        if manifest["format"] == FORMAT and isinstance(manifest["files"], dict):
            vouched = {MANIFEST, *manifest["files"]}
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(folder).as_posix() for path in files)
    return next((name for name in names if name not in vouched), None)


def open_artifact(folder: Path) -> Artifact:
    """Read and verify an artifact. Errors: CheckpointError naming the file, the reason and the command that helps."""
    try:
        return _opened(folder.resolve())
    except (CheckpointError, Damaged) as error:
        raise CheckpointError(f"{error}; export it again with `make onnx MODEL=checkpoint OUT=dir`") from None


def _opened(folder: Path) -> Artifact:
    path = folder / MANIFEST
    try:
        text = read_file(path, _LARGEST)
        if (number := parse_json(text)["format"]) != FORMAT:  # first, so that an older one is not called damaged
            raise CheckpointError(f"{path} has format {number!r:.64}, not {FORMAT}")
        manifest = unsealed(text, path)
        vouched = {str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()}
        exported = manifest["spec"]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged ({type(error).__name__})") from None
    _check_files(folder, vouched)
    spec = read_spec(folder)
    if not _means(exported, spec):
        raise CheckpointError(f"{path} was made for another spec than its configs give")
    return Artifact(folder, hashlib.sha256(text).hexdigest(), spec)


def _means(exported: object, now: Any) -> bool:
    """Return whether `exported`, a spec (or a part of one) as a manifest has it, means the same as today's spec `now`.

    The manifest lacks fields that were added later. These must be at their default, which by rule stands for what was
    done before there was the field. Any other difference means that the graphs were made for something else.
    """
    if not is_dataclass(now):
        return exported == json.loads(json.dumps(now))
    named = {field.name: field for field in fields(now)}
    if not isinstance(exported, dict) or exported.keys() - named.keys():
        return False
    return all(
        _means(exported[name], getattr(now, name)) if name in exported else getattr(now, name) == field.default
        for name, field in named.items()
    )


def _check_files(folder: Path, vouched: dict[str, str]) -> None:
    """Check that every file that a server reads is named, lies in the folder, and has the SHA-256 of the manifest."""
    present = [name for name in SMALL_FILES if os.path.lexists(folder / name)]
    for name in (*GRAPHS.values(), *present):
        if name not in vouched:
            raise CheckpointError(f"{folder / MANIFEST} does not name {name}")
    for name in vouched:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{folder / MANIFEST} names {name!r}, which lies outside its folder")
        if not os.path.isfile(folder / name):
            raise CheckpointError(f"{folder / name} is missing")
        # What was hashed must be what a runtime opens, and readers of ONNX refuse links.
        if os.path.realpath(folder / name) != os.path.join(folder, name):
            raise CheckpointError(f"{folder / name} is a link, or named in a roundabout way")
    for (name, sha256), digest in zip(vouched.items(), digests([folder / name for name in vouched]), strict=True):
        if sha256 != digest:
            raise CheckpointError(
                f"{folder / name} is not the file that the manifest vouches for: restore it, unless the change is meant"
            )
    for graph in GRAPHS.values():
        try:
            places = external_files(read_file(folder / graph, _LARGEST_GRAPH))
        except (ValueError, CheckpointError) as error:
            raise CheckpointError(f"{folder / graph} cannot be read as a graph: {error}") from None
        for place in places:
            if os.path.join(os.path.dirname(graph), place) not in vouched:
                raise CheckpointError(
                    f"{folder / graph} takes weights from {place!r}, which the manifest does not vouch for"
                )


def digests(paths: list[Path]) -> list[str]:
    """Return the SHA-256 of each file, hashed several at once without Python's lock. Errors: CheckpointError."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(_digest, paths))


def _digest(path: Path) -> str:
    try:
        regular_size(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
