"""python -m export graphs [--check]: every committed graph is traced again, checked against torch, and compared.

Those of the published models lie in graphs/, those of the test checkpoints in tests/graphs/. A file that is missing is
written. One that has other bytes than today's tracer gives is never overwritten: it is named, and whoever means the
change deletes it first. `--check` writes nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import onnx
import onnxruntime

from engines.cache import disk
from export.committed import SHIPPED, TESTS, committed
from export.graph import trace
from export.networks import BY_NAME, Network
from export.parity import network_error
from model.random import init_windows
from model.weights import empty
from pipeline.errors import LatentdError
from pipeline.networks import ClipSpec
from pipeline.spec import Spec

_SEED = 1


class GraphsError(LatentdError):
    """Committed graphs are not what the tracer gives; the message names them."""


def run(argv: list[str], say: Callable[[str], None]) -> None:
    """Trace and compare all graphs. Errors: GraphsError that names those at fault; ExportError; DiskError."""
    parser = argparse.ArgumentParser(
        prog="python -m export graphs", description="Trace all committed graphs, check them, and write what is missing."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a graph is missing or differs")
    check = parser.parse_args(argv).check
    faults = []
    wanted = committed()
    for path, (name, spec) in wanted.items():
        network = BY_NAME[name]
        begun = time.monotonic()
        graph = trace(network, spec)
        traced = time.monotonic() - begun
        error = random_error(network, spec, graph)
        state = "the same"
        if not path.is_file():
            state = "missing" if check else "written"
            if not check:
                disk.write_whole(path, graph)
        elif path.read_bytes() != graph:
            state = "other bytes"
        say(f"{path.name}: {len(graph) / 1e3:.0f} kB, {traced:.1f} s, error {error:.1e}, {state}")
        faults += [f"{path.name} ({state})"] if state in ("missing", "other bytes") else []
    nobodys = {path for folder in (SHIPPED, TESTS) for path in folder.glob("*.onnx")} - wanted.keys()
    faults += [f"{path.name} (of no listed spec)" for path in sorted(nobodys)]
    if faults:
        raise GraphsError(f"{len(faults)} graphs are not what is committed: {', '.join(faults)}")


def random_error(network: Network, spec: Spec | ClipSpec, graph: bytes) -> float:
    """Return max |ONNX Runtime - torch| / max |torch| with random weights. Errors: ExportError past the tolerance.

    The weights go in as the inputs that they are, without a copy, and lie over each other.
    """
    net = init_windows(empty(lambda: network.build(spec)), _SEED).eval()
    onnx.checker.check_model(graph)
    running = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return network_error(network, spec, net, running, {name: weight.numpy() for name, weight in net.named_parameters()})
