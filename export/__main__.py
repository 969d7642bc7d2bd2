"""python -m export MODEL [--out DIR] [--prediction epsilon|v_prediction]: a checkpoint becomes an artifact.

python -m export trace SPEC.json --network NAME --out FILE: a spec becomes a graph (trace_command.py).
python -m export graphs [--check]: the graphs that ship, traced again (graphs_command.py).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from engines.process.tether import end_with_parent
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.checkpoint.single_file import PREDICTIONS
from pipeline.errors import CheckpointError, LatentdError
from pipeline.extras import install


def main(argv: list[str] | None = None) -> int:
    end_with_parent()
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if arguments[:1] == ["trace"]:
            from export import trace_command

            trace_command.run(arguments[1:])
        elif arguments[:1] == ["graphs"]:
            from export import graphs_command

            graphs_command.run(arguments[1:], _say)
        else:
            _export(arguments)
    except ModuleNotFoundError as error:
        print(f"export needs {error.name}, which is not installed: {install('export')}", file=sys.stderr)
        return 1
    except LatentdError as error:
        print(error, file=sys.stderr)
        return 1
    except MemoryError:
        print(f"there is not enough memory for python -m export {' '.join(arguments)}", file=sys.stderr)
        return 1
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _export(arguments: list[str]) -> None:
    """Export what the options name. Errors: LatentdError."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Export a safetensors checkpoint, a folder in diffusers' layout or a single file, to ONNX graphs "
        "beside its weights, check them with ONNX Runtime against torch, and write the manifest that servers verify.",
    )
    parser.add_argument("model", type=Path, help="the checkpoint: a folder, or a .safetensors file")
    parser.add_argument("--out", type=Path, help="a folder that is new, empty or an artifact")
    parser.add_argument(
        "--prediction",
        help=f"{' or '.join(PREDICTIONS)}: of a single file that does not tell, as SD 2 does not",
    )
    options = parser.parse_args(arguments)
    model, out = options.model, options.out
    where, prediction = "--prediction", options.prediction
    if prediction is None:
        where, prediction = "LATENTD_PREDICTION", os.environ.get("LATENTD_PREDICTION") or "auto"
    if prediction not in ("auto", *PREDICTIONS):
        parser.error(f"{where} is {prediction!r}; it takes auto, {' or '.join(PREDICTIONS)}")
    if out is None:
        raise CheckpointError(
            f"say where the artifact of {model} goes: --out DIR, or make onnx MODEL={model} OUT=dir "
            f"(nothing is written into a checkpoint, and serving it needs no export)"
        )
    from export.artifact import export

    artifact = export(open_checkpoint(model, prediction), out, _say)
    print(f"artifact {artifact.digest[:12]}: {artifact.folder}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
