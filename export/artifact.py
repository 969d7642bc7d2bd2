"""Checkpoint to artifact: graphs beside the weights, checked, and a manifest written last."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engines.artifact import (
    CONFIGS,
    FORMAT,
    MANIFEST,
    OPTIONAL_CONFIGS,
    Artifact,
    digests,
    has_safety_checker,
    open_artifact,
)
from engines.sealed import sealed
from export import check
from export.graph import OPSET, trace
from export.networks import NETWORKS
from export.preview import fit_preview
from export.tensors import stored_tensors
from model.files import weight_files
from pipeline.errors import CheckpointError
from pipeline.spec import read_spec
from pipeline.tokenizer import ClipTokenizer

_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def export(checkpoint: Path, out: Path | None = None, say: Callable[[str], None] = print) -> Artifact:
    """Export, check and vouch for a checkpoint; into its own folder, or into `out` with copies of its files.

    Errors: CheckpointError for a checkpoint that cannot be read or written beside; ExportError when a graph does
    not compute what its network computes. Once the work has begun, either leaves no manifest.
    """
    spec = read_spec(checkpoint)
    tokenizer = ClipTokenizer(checkpoint, spec.text)
    files = _sources(checkpoint)
    if out is None:
        _writable(checkpoint, files)
        folder = checkpoint
    else:
        folder = out
        _copy(checkpoint, out, files, say)
    (folder / MANIFEST).unlink(missing_ok=True)
    if has_safety_checker(folder):
        say("warning: the checkpoint's safety checker is not run: pictures are delivered as they come")

    errors: dict[str, float] = {}
    preview = context = None
    for network in NETWORKS:
        net = network.load(spec, folder)
        path = folder / network.graph
        stored = stored_tensors(folder, network.part)
        _write(path, trace(net, network.inputs(spec), network.outputs(spec), stored, path.parent))
        running = check.session(path)
        errors[network.name] = check.network_error(network, spec, net, running)
        say(f"{network.graph}: {path.stat().st_size / 1e3:.0f} kB, error {errors[network.name]:.1e}")
        if network.name == "text_encoder":
            ids = np.stack([tokenizer.encode(text).ids for text in ("a red apple", "")])
            context = np.asarray(running.run(None, {"ids": ids})[0])
        if network.name == "unet":
            assert context is not None, "the text encoder comes first"
            errors["trajectory"] = check.trajectory_error(spec, net, running, context)
            say(f"trajectory of eight guided steps: error {errors['trajectory']:.1e}")
        if network.name == "vae_encoder":
            preview = fit_preview(spec, running)
            say(f"preview: a linear map of the latents explains {preview.explained:.0%} of the colours")
        del net, running
    assert preview is not None

    names = [*files, *(network.graph for network in NETWORKS)]
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "spec": spec.to_json(),
        "preview": {"matrix": preview.matrix, "explained": preview.explained},
        "errors": {name: float(f"{error:.2e}") for name, error in errors.items()},
        "tools": {"opset": OPSET, **{tool: importlib.metadata.version(tool) for tool in _TOOLS}},
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
            for name, digest in zip(names, digests([folder / name for name in names]), strict=True)
        },
    }
    _write(folder / MANIFEST, sealed(manifest))
    return open_artifact(folder)


def _sources(checkpoint: Path) -> list[str]:
    """Names, relative to the checkpoint, of every file of it that a server reads."""
    names = [*CONFIGS, *(name for name in OPTIONAL_CONFIGS if (checkpoint / name).exists())]
    for part in dict.fromkeys(network.part for network in NETWORKS):
        indexes = sorted((checkpoint / part).glob("*.safetensors.index*.json"))  # of shards
        names += [path.relative_to(checkpoint).as_posix() for path in (*weight_files(checkpoint, part), *indexes)]
    for name in names:
        if not (checkpoint / name).is_file():
            raise CheckpointError(f"{checkpoint / name} is missing; a checkpoint is a folder in diffusers' layout")
    return names


def _writable(checkpoint: Path, files: list[str]) -> None:
    remedy = f"give another folder: make onnx MODEL={checkpoint} OUT=dir"
    for path in (checkpoint / name for name in files):
        if path.is_symlink() or path.stat().st_nlink > 1:
            raise CheckpointError(f"{path} is a link, and readers of ONNX refuse weights behind links; {remedy}")
    for folder in {checkpoint, *((checkpoint / network.graph).parent for network in NETWORKS)}:
        if not os.access(folder, os.W_OK):
            raise CheckpointError(f"{folder} cannot be written; {remedy}")


def _copy(checkpoint: Path, out: Path, files: list[str], say: Callable[[str], None]) -> None:
    if out.resolve() == checkpoint.resolve():
        raise CheckpointError(f"OUT={out} is the checkpoint itself; leave OUT away to export in place")
    try:
        for name in files:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint / name, out / name)
    except OSError as error:
        raise CheckpointError(f"cannot copy {checkpoint} to {out}: {error}") from None
    say(f"copied {len(files)} files to {out}")


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from None
    finally:  # renamed away, unless something failed or interrupted
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


assert sys.byteorder == "little", "safetensors are little-endian, and the graphs point into them as they are"
