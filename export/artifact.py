"""Checkpoint to artifact: graphs beside the weights, checked, and a manifest written last."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import graphs
from engines import disk
from engines.artifact import (
    CONFIGS,
    FORMAT,
    GRAPHS,
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
from export.leftovers import sweep
from export.networks import NETWORKS, Network
from export.point import point
from export.preview import fit_preview
from model.weights import check_weights
from pipeline.checkpoint.finite import check_finite
from pipeline.checkpoint.header import StoredTensor, stored_tensors
from pipeline.checkpoint.parts import weight_files
from pipeline.errors import CheckpointError
from pipeline.files import check_links, regular_size
from pipeline.spec import Spec, read_spec
from pipeline.tokenizer import ClipTokenizer

_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def export(checkpoint: Path, out: Path | None = None, say: Callable[[str], None] = print) -> Artifact:
    """Export, check and vouch for a checkpoint; into its own folder, or into `out` with copies of its files.

    What `inspect` refuses is refused before anything is written.
    Errors: CheckpointError for a checkpoint that cannot be read or written beside; DiskError; ExportError when a graph
    does not compute what its network computes. Once something was written, any of them leaves no manifest.
    """
    told = inspect(checkpoint)
    spec, files, stored, folder = told.spec, told.files, told.stored, out or checkpoint
    if out is None:
        _writable(checkpoint, files)
        _begin(folder)
    else:
        _copy(checkpoint, out, files, say)
        stored = {part: _moved(tensors, checkpoint, out) for part, tensors in stored.items()}
    if has_safety_checker(folder):
        say("warning: the checkpoint's safety checker is not run: pictures are delivered as they come")

    errors: dict[str, float] = {}
    preview = context = None
    for network in NETWORKS:
        net = network.load(spec, checkpoint)
        path = folder / network.graph
        graph = onnx.load_from_string(_weightless(network, spec))
        point(graph, stored[network.part], path.parent)
        disk.write_whole(path, graph.SerializeToString(deterministic=True))
        running = check.session(path)
        errors[network.name] = check.network_error(network, spec, net, running)
        say(f"{network.graph}: {path.stat().st_size / 1e3:.0f} kB, error {errors[network.name]:.1e}")
        if network.name == "text_encoder":
            ids = np.stack([told.tokenizer.encode(text).ids for text in ("a red apple", "")])
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
    disk.write_whole(folder / MANIFEST, sealed(manifest))
    return open_artifact(folder)


def _weightless(network: Network, spec: Spec) -> bytes:
    """Return the shipped graph of `network`, or one that is traced now."""
    path = graphs.shipped(network.name, spec)
    return path.read_bytes() if path else trace(network, spec)


@dataclass(frozen=True)
class Inspected:
    spec: Spec
    files: list[str]  # names, relative to the checkpoint, of every file that a server reads
    tokenizer: ClipTokenizer
    stored: dict[str, dict[str, StoredTensor]]  # by part, then by the networks' names


def inspect(checkpoint: Path) -> Inspected:
    """Everything that can be told of a checkpoint without running its networks. Errors: CheckpointError."""
    spec = read_spec(checkpoint)
    files = _sources(checkpoint)
    tokenizer = ClipTokenizer(checkpoint, spec.text)
    parts = dict.fromkeys(network.part for network in NETWORKS)
    stored = {part: stored_tensors(checkpoint, part) for part in parts}
    check_weights(spec, checkpoint)
    check_finite(pair for tensors in stored.values() for pair in tensors.items())
    return Inspected(spec, files, tokenizer, stored)


def _sources(checkpoint: Path) -> list[str]:
    names = [*CONFIGS, *(name for name in OPTIONAL_CONFIGS if os.path.lexists(checkpoint / name))]
    for part in dict.fromkeys(network.part for network in NETWORKS):
        indexes = sorted((checkpoint / part).glob("*.safetensors.index*.json"))  # of shards
        names += [path.relative_to(checkpoint).as_posix() for path in (*weight_files(checkpoint, part), *indexes)]
    for name in names:
        try:
            regular_size(checkpoint / name)
        except FileNotFoundError:
            missing = f"{checkpoint / name} is missing; a checkpoint is a folder in diffusers' layout"
            raise CheckpointError(missing) from None
        check_links(checkpoint, name)
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
    disk.make(out)
    _begin(out)
    # What is there of an earlier export goes first: it may be another model's, and the disk may have room for one.
    for name in {*files, *OPTIONAL_CONFIGS, *GRAPHS.values()}:
        disk.remove(out / name)
    for name in files:
        disk.make((out / name).parent)
        disk.copy(checkpoint / name, out / name)
    say(f"copied {len(files)} files to {out}")


def _moved(tensors: dict[str, StoredTensor], checkpoint: Path, out: Path) -> dict[str, StoredTensor]:
    """The same tensors in the copies of their files."""
    return {name: replace(tensor, path=out / tensor.path.relative_to(checkpoint)) for name, tensor in tensors.items()}


def _begin(folder: Path) -> None:
    """Take away the manifest, then what exports that were killed have left: nothing vouches for what is half done."""
    disk.remove(folder / MANIFEST)
    sweep(folder, (*GRAPHS.values(), MANIFEST))


assert sys.byteorder == "little", "safetensors are little-endian, and the graphs point into them as they are"
