"""python -m export trace SPEC.json --network NAME --out FILE: the graph of one network, from its spec alone.

A process of its own for each: what torch holds after a trace ends with it. No checkpoint is read, and no weight.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engines.cache import disk
from graphs import NETWORKS, TOWERS
from pipeline.errors import CheckpointError, LatentdError
from pipeline.files import parse_json, read_file
from pipeline.spec_json import clip_from_json, spec_from_json

_LARGEST = 1 << 20  # bytes of a spec; SD 1.5's has 1,100


class TraceError(LatentdError):
    """The network of a spec cannot be traced; the message says why."""


def run(argv: list[str]) -> None:
    """Trace, and write the file whole or not at all. Errors: LatentdError."""
    parser = argparse.ArgumentParser(
        prog="python -m export trace", description="Trace one network of a spec to an ONNX graph without weights."
    )
    parser.add_argument("spec", type=Path, help="JSON, as to_json of Spec or ClipSpec gives it")
    parser.add_argument("--network", choices=dict.fromkeys((*NETWORKS, *TOWERS)), required=True)
    parser.add_argument("--out", type=Path, required=True, help="the graph's file")
    options = parser.parse_args(argv)
    try:
        values = parse_json(read_file(options.spec, _LARGEST))
        is_clip = isinstance(values, dict) and "vision" in values
        spec = clip_from_json(values) if is_clip else spec_from_json(values)
    except FileNotFoundError:
        raise CheckpointError(f"{options.spec} is missing") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{options.spec} cannot be read as JSON: {error}") from None
    from export.graph import trace
    from export.networks import BY_NAME

    try:
        graph = trace(BY_NAME[options.network], spec)
    except MemoryError:
        raise
    except Exception as error:  # torch has a class of its own for each thing that a wrong spec may break
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        reason = next(iter(str(cause).splitlines()), "") or type(cause).__name__
        raise TraceError(f"the {options.network} of {options.spec} cannot be traced: {reason}") from error
    disk.make(options.out.absolute().parent)
    disk.write_whole(options.out, graph)
