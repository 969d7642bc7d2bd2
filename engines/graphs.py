"""The graph of each network of a spec: shipped with latentd, or traced once and kept in $LATENTD_CACHE/graphs.

A graph belongs to an architecture and holds no weights, so that most checkpoints need none of their own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import tempfile
from pathlib import Path

import graphs
from engines.cache import disk, entries, lock
from engines.process.exporting import check_extra, run_export
from graphs import ports, wire
from graphs.adapted import with_adapters
from pipeline.checkpoint.opened import Checkpoint
from pipeline.errors import CheckpointError
from pipeline.files import read_file
from pipeline.loras.layers import merged
from pipeline.networks import ClipSpec
from pipeline.spec import Spec

_LARGEST = 64 << 20  # bytes of a graph; SDXL's UNet has 0.5 million
# What decides which graph a spec is traced to: the networks, how they are traced, and how inputs are called.
_TRACER = (
    "model/*.py",
    "export/graph.py",
    "export/networks.py",
    "graphs/ports.py",
    "graphs/wire.py",
    "pipeline/networks.py",
)

log = logging.getLogger("latentd.graphs")


def graph_of(network: str, spec: Spec | ClipSpec) -> bytes:
    """Return the ONNX graph of `network` (one of graphs.NETWORKS or TOWERS), serialised, with its weights as inputs.

    Where there is no graph yet, a child process traces it: SDXL's UNet, the largest, takes three minutes of CPU time.
    One that takes LoRAs is made of the one that does not.
    Errors: BackendError where tracing needs an extra that is not installed; CheckpointError; DiskError.
    """
    if isinstance(spec, Spec) and (layers := ports.adapted_layers(network, spec)):
        cheaper = merged(spec.unet) if network == "unet" else ()
        return with_adapters(graph_of(network, ports.adapted(spec, False)), ports.adapters(layers), cheaper)
    return known_graph(network, spec) or _traced(network, spec)


def known_graph(network: str, spec: Spec | ClipSpec) -> bytes | None:
    """Return the graph that ships, or else the one that the cache has, if it is whole. Errors: CheckpointError."""
    shipped = graphs.shipped(network, spec)
    path = shipped or _place(network, spec)
    try:
        data = read_file(path, _LARGEST)
        wire.weights(data)
        return data
    except FileNotFoundError:
        return None
    except ValueError as error:
        if shipped:
            raise CheckpointError(f"{path} is damaged ({error}); install latentd again") from None
        log.warning("%s is damaged (%s); tracing it again", path, error)
        return None


@functools.cache
def tracer() -> str:
    """Return the seal of this tracer, a hash of its sources: what another version traced is never taken for its own.

    Written down by hand, a version would be forgotten one day; a comment that changes costs one more trace.
    """
    root, seal = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for pattern in _TRACER for path in root.glob(pattern)):
        seal.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return seal.hexdigest()[:12]


def kept_name(name: str) -> str:
    """Return how the cache calls the graph that graphs.name_of calls `name`, where this tracer traced it."""
    return f"{name.removesuffix('.onnx')}-{tracer()}.onnx"


def seal_of(network: str, spec: Spec | ClipSpec) -> str:
    """Return what tells one graph of `network` from another: the hash of the one that ships, else the tracer's seal."""
    path = graphs.shipped(network, spec)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else tracer()


def check_fit(checkpoint: Checkpoint) -> None:
    """Compare every part's tensors with what its graphs want, by name and shape. Errors: those of graph_of."""
    wanted: dict[str, dict[str, tuple[int, ...]]] = {}
    for network in graphs.NETWORKS:
        wanted.setdefault(graphs.part_of(network), {}).update(wire.weights(graph_of(network, checkpoint.spec)))
    for part, shapes in wanted.items():
        checkpoint.weights.check(part, shapes)


def _place(network: str, spec: Spec | ClipSpec) -> Path:
    return entries.cache_folder() / "graphs" / kept_name(graphs.name_of(network, spec))


def _traced(network: str, spec: Spec | ClipSpec) -> bytes:
    """Trace a graph into the cache, in a child, unless another process is faster."""
    path = _place(network, spec)
    check_extra(f"this architecture ships without a graph of its {network}, and tracing one (once, no weights)")
    disk.make(path.parent)
    with lock.alone(path, log.info) as waited:
        if waited and (data := known_graph(network, spec)):
            return data
        log.info("tracing the graph of this architecture's %s, once", network)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(spec.to_json(), file)
            file.flush()
            run_export(["trace", file.name, "--network", network, "--out", str(path)])
    return read_file(path, _LARGEST)
