"""Makes an artifact of a checkpoint: a folder with weights and checked graphs, and a manifest that vouches for all.

It is made beside its place and renamed when it is whole, so that nothing half done is ever found there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import importlib.metadata
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from engines.artifact.opened import FORMAT, MANIFEST, Artifact, digests, open_artifact, strange_file
from engines.cache import disk, lock
from engines.cache.sealed import sealed
from engines.graphs import known_graph
from export import parity
from export.graph import OPSET, trace
from export.layout import lay_out
from export.networks import NETWORKS, Network
from export.point import point
from model.weights import check_weights
from pipeline.checkpoint.opened import Checkpoint
from pipeline.errors import CheckpointError
from pipeline.spec import Spec
from pipeline.tokenizer import AnyTokenizer, tokenizer_of

_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def export(checkpoint: Checkpoint, out: Path, say: Callable[[str], None] = print) -> Artifact:
    """Export, check and vouch for a checkpoint, into a folder that is new, empty or an artifact.

    Errors: CheckpointError for a checkpoint that does not fit or is not finite, or an `out` that holds anything else;
    DiskError; ExportError when a graph does not compute what its network computes. `out` is then as it was.
    """
    _check_place(checkpoint, out)
    spec, tokenizer = checkpoint.spec, tokenizer_of(checkpoint.source, checkpoint.spec)
    check_weights(spec, checkpoint.weights)
    checkpoint.weights.digest()  # which finds what is not finite
    if checkpoint.has_safety_checker:
        say("warning: the checkpoint's safety checker is not run: pictures are delivered as they come")
    with _beside(out.resolve()) as folder:
        stored = lay_out(checkpoint, folder)
        say(f"copied the weights and {len(checkpoint.small_files())} small files")
        errors: dict[str, float] = {}
        for network in NETWORKS:
            path, net = folder / network.graph, network.load(spec, checkpoint.weights)
            graph = onnx.load_from_string(_weightless(network, spec))
            point(graph, stored[network.part], path.parent)
            disk.write(path, graph.SerializeToString(deterministic=True))
            errors[network.name] = parity.network_error(network, spec, net, parity.session(path))
            say(f"{network.graph}: {path.stat().st_size / 1e3:.0f} kB, error {errors[network.name]:.1e}")
            del net  # before the next one is loaded
        errors["trajectory"] = _trajectory_error(checkpoint, tokenizer, folder)
        say(f"trajectory of eight guided steps: error {errors['trajectory']:.1e}")
        _vouch(folder, spec, errors)
    return open_artifact(out)


def _trajectory_error(checkpoint: Checkpoint, tokenizer: AnyTokenizer, folder: Path) -> float:
    """Return parity.trajectory_error of a prompt and of none, as the exported text encoder reads them."""
    spec, by_name = checkpoint.spec, {network.name: network for network in NETWORKS}
    ids = np.stack([tokenizer.encode(text).ids for text in ("a red apple", "")])
    context, *others = parity.session(folder / by_name["text_encoder"].graph).run(None, {"ids": ids})
    unet, pooled = by_name["unet"], np.asarray(others[-1]) if spec.unet.pooled_width else None
    net = unet.load(spec, checkpoint.weights)
    return parity.trajectory_error(spec, net, parity.session(folder / unet.graph), np.asarray(context), pooled)


def _vouch(folder: Path, spec: Spec, errors: dict[str, float]) -> None:
    """Write the manifest over every file of the folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "spec": spec.to_json(),
        "errors": {name: float(f"{error:.2e}") for name, error in errors.items()},
        "tools": {"opset": OPSET, **{tool: importlib.metadata.version(tool) for tool in _TOOLS}},
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
            for name, digest in zip(names, digests([folder / name for name in names]), strict=True)
        },
    }
    disk.write(folder / MANIFEST, sealed(manifest))


def _weightless(network: Network, spec: Spec) -> bytes:
    return known_graph(network.name, spec) or trace(network, spec)


def _check_place(checkpoint: Checkpoint, out: Path) -> None:
    """Check that nothing would be lost or mixed up in `out`. Errors: CheckpointError."""
    place = out.resolve()
    if place.is_relative_to(checkpoint.path.resolve()):
        raise CheckpointError(f"OUT={out} is the checkpoint or in it, where nothing is written; name another folder")
    if os.path.lexists(place) and not place.is_dir():
        raise CheckpointError(f"OUT={out} is no folder; name one that is new or empty")
    if place.is_mount():
        raise CheckpointError(f"OUT={out} is a mount point, which nothing can replace; name a folder in it")
    if strange := strange_file(place):
        raise CheckpointError(
            f"OUT={out} holds {strange}, which no manifest of format {FORMAT} vouches for; name a folder that is new, "
            f"empty or an artifact and no more"
        )


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` that takes its place at the end; what killed exports have left there goes."""
    disk.make(out.parent)
    for left in out.parent.glob(f".exporting-{glob.escape(out.name)}-*"):
        if (number := lock.take(left, fcntl.LOCK_EX)) is not None:  # nobody's any more
            disk.remove(left)
            os.close(number)
    folder = out.with_name(f".exporting-{out.name}-{secrets.token_hex(4)}")
    disk.make(folder)
    held = lock.take(folder, fcntl.LOCK_EX)
    try:
        if held is None:  # another process swept it away, between the two calls
            raise disk.DiskError("lock", folder, OSError(errno.EAGAIN, "another process has it; try again"))
        yield folder
        disk.sync(folder)
        if out.is_dir():
            disk.exchange(folder, out)
        else:
            disk.replace(folder, out)
    finally:
        with contextlib.suppress(disk.DiskError):  # what is left goes with the next export
            disk.remove(folder)
        if held is not None:
            os.close(held)


assert sys.byteorder == "little", "safetensors are little-endian, and the graphs point into them as they are"
