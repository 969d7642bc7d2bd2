"""python -m export MODEL [--out DIR] [--prediction epsilon|v_prediction]: a checkpoint becomes an artifact.

python -m export trace SPEC.json --network NAME --out FILE: a spec becomes a graph (trace_command.py).
python -m export graphs [--check]: the graphs that ship, traced again (graphs_command.py).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from engines.tether import end_with_parent
from pipeline.checkpoint.single_file import PREDICTIONS, check_single_file, is_single_file
from pipeline.errors import CheckpointError, LatentdError


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
        print(f"export needs {error.name}: pip install -e '.[export]'", file=sys.stderr)
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
    """Errors: LatentdError."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Export a safetensors checkpoint, a folder in diffusers' layout or a single file, to ONNX graphs "
        "beside its weights, check them with ONNX Runtime against torch, and write the manifest that servers verify.",
    )
    parser.add_argument("model", type=Path, help="the checkpoint: a folder, or a .safetensors file")
    parser.add_argument("--out", type=Path, help="write here instead, with copies of the checkpoint's files")
    parser.add_argument(
        "--prediction",
        default=os.environ.get("LATENTD_PREDICTION") or "auto",
        help=f"{' or '.join(PREDICTIONS)}: of a single file that does not tell, as SD 2 does not",
    )
    options = parser.parse_args(arguments)
    model, out, prediction = options.model, options.out, options.prediction
    if prediction not in ("auto", *PREDICTIONS):
        parser.error(f"--prediction is {prediction!r}; it takes auto, {' or '.join(PREDICTIONS)}")
    if is_single_file(model):
        from export.single_file.convert import convert

        model, out = convert(model, _wanted(out, model), prediction, _say), None
    elif prediction != "auto":
        raise CheckpointError(f"prediction {prediction} is for single files; {model} has its own scheduler config")
    from export.artifact import export

    artifact = export(model, out, _say)
    print(f"artifact {artifact.digest[:12]}: {artifact.folder}")


def _wanted(out: Path | None, model: Path) -> Path:
    check_single_file(model)
    if out is None:
        raise CheckpointError(
            f"{model} is a single file, so say where its checkpoint folder goes: --out DIR, or "
            f"make onnx MODEL={model} OUT=dir"
        )
    return out


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
