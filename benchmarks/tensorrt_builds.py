"""What building plans takes: seconds, processor seconds, memory and size of each, by TensorRT for RTX without a GPU.

    python -m benchmarks.tensorrt_builds MODEL --targets sm_89 sm_120 --rows 2

MODEL is an artifact (`make onnx`). Every study and every build is a process of its own, so that its peak memory is
its own. Processor seconds are beside the others because a machine that builds is seldom idle.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.rows import Rows
from engines.artifact.opened import Artifact, open_artifact
from engines.build.builder import Order
from engines.tensorrt.build.builder import TensorRtBuilder
from engines.tensorrt.notes import ProcessNotes
from engines.tensorrt.types.islands import METHOD, study

MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tensorrt_builds")
    parser.add_argument("model", type=Path, help="an artifact's folder")
    parser.add_argument("--targets", nargs="+", default=["sm_89", "sm_120"])
    parser.add_argument("--rows", nargs="+", type=int, default=[2])
    args = parser.parse_args()
    artifact = open_artifact(args.model)
    width, height = artifact.spec.defaults.width, artifact.spec.defaults.height
    rows = Rows("tensorrt-rtx-builds", ("tensorrt-rtx", "onnx", "onnxruntime"))
    notes: dict[str, Any] = {}
    for target in args.targets:
        builder = TensorRtBuilder(artifact, target)
        for order in builder.orders(args.rows, [(width, height)]):
            shape = f"{args.model.name} {width}x{height} {order.network} of {next(iter(order.shapes.values()))[0]} rows"
            if order.network not in notes:
                notes[order.network], cost = alone(_study, artifact, order.network)
                add(rows, "looking for float16 islands", f"{shape}, {notes[order.network]['side']} pixels a side", cost)
            facts, cost = alone(_build, artifact, target, order, notes[order.network])
            add(rows, "plan without a GPU", f"{shape}, f16, {len(facts['islands'])} islands, {target}", cost)
            rows.add("plan's size", f"{shape}, {target}", "MB", [facts["plan"]["bytes"] / MB])


def add(rows: Rows, what: str, shape: str, cost: dict[str, float]) -> None:
    for unit, value in cost.items():
        name = {"s": "", "cpu s": ": processor", "MB": ": peak memory"}[unit]
        busy = f", load average {os.getloadavg()[0]:.0f}" if unit == "s" else ""
        rows.add(what + name, shape + busy, "s" if unit == "cpu s" else unit, [value])


def alone(work: Callable[..., Any], *given: Any) -> tuple[Any, dict[str, float]]:
    """Run `work` in a fresh process; returns its result, and what that took."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, work, *given).result()


def _measured(work: Callable[..., Any], *given: Any) -> tuple[Any, dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    got = work(*given)
    took = {"s": time.perf_counter() - wall, "cpu s": time.process_time() - cpu}
    return got, took | {"MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB}


def _what(artifact: Artifact, network: str) -> dict[str, Any]:
    return {"what": "float16 ranges", "artifact": artifact.digest, "network": network, "method": METHOD}


def _study(artifact: Artifact, network: str) -> Any:
    notes = ProcessNotes()
    study(artifact, network, notes)
    return notes.recall(**_what(artifact, network))


def _build(artifact: Artifact, target: str, order: Order, known: Any) -> dict[str, Any]:
    notes = ProcessNotes()
    notes.remember(known, **_what(artifact, order.network))
    with tempfile.TemporaryDirectory() as folder:
        return TensorRtBuilder(artifact, target, notes=notes).build(order, Path(folder) / "plan", lambda line: None)


if __name__ == "__main__":
    main()
