"""python -m export MODEL [--out DIR]: a checkpoint becomes an artifact."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Export a diffusers-layout safetensors checkpoint to ONNX graphs beside its weights, check them "
        "with ONNX Runtime against torch, and write the manifest that a server verifies.",
    )
    parser.add_argument("model", type=Path, help="the checkpoint's folder")
    parser.add_argument("--out", type=Path, help="write here instead, with copies of the checkpoint's files")
    options = parser.parse_args(argv)
    try:
        from export.artifact import export
        from pipeline.errors import LatentdError
    except ModuleNotFoundError as error:
        print(f"export needs {error.name}: pip install -e '.[export]'", file=sys.stderr)
        return 1
    try:
        artifact = export(options.model, options.out, say=lambda line: print(line, flush=True))
    except LatentdError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"artifact {artifact.digest[:12]}: {artifact.folder}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
