"""python -m engines check MODEL: how far this machine's engines are from the reference."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m engines", description="Engines of a model on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check",
        help="compare a backend with torch in float32",
        description="Each network's error, rows alone against rows in company, and whole trajectories, against torch "
        "in float32 (the extra `export`). Exit status 1 when anything is past its tolerance.",
    )
    check.add_argument("model", type=Path, help="an artifact, or a checkpoint (exported on first use)")
    check.add_argument("--backend", default="auto", help="auto, openvino, onnxruntime, torch (default auto)")
    check.add_argument("--precision", default="auto", help="auto, f32, f16, bf16 (default auto)")
    check.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    check.add_argument("--pixels", default="auto", help="auto, exact, fast (default auto)")
    check.add_argument("--size", default="", help="width x height, such as 256x256 (default: the model's own)")
    check.add_argument("--samplers", default="ddim,euler,dpmpp_2m", help="separated by commas, or all")
    check.add_argument("--steps", type=int, default=20, help="default 20")
    options = parser.parse_args(argv)
    try:
        from engines.first_use import artifact_of
        from engines.model import load
        from pipeline.errors import LatentdError
    except ModuleNotFoundError as error:
        print(f"engines need {error.name}: pip install -e '.[cpu]'", file=sys.stderr)
        return 1
    try:
        from engines.check import Finding
        from engines.check import check as compare
        from pipeline.samplers import SAMPLERS

        artifact = artifact_of(options.model)
        default, unit = artifact.spec.defaults, artifact.spec.size_multiple
        size = re.fullmatch(r"(\d{1,4})x(\d{1,4})", options.size or f"{default.width}x{default.height}")
        if size is None or any(int(side) < 1 or int(side) % unit for side in size.groups()):
            parser.error(f"--size is {options.size!r}; it takes WIDTHxHEIGHT, multiples of {unit}")
        samplers = list(SAMPLERS) if options.samplers == "all" else options.samplers.split(",")
        if unknown := [name for name in samplers if name not in SAMPLERS]:
            parser.error(f"--samplers has {unknown[0]!r}; there are {', '.join(SAMPLERS)}")
        if not 1 <= options.steps <= 150:
            parser.error(f"--steps is {options.steps}; it takes 1 to 150")
        model = load(artifact, options.backend, options.precision, None, options.device, options.pixels)
        reference = load(artifact, "torch", device="cpu")
        width, height = int(size[1]), int(size[2])
        print(f"{artifact.id} {width}x{height}: {model.backend.name} {model.backend.precision} against torch f32")

        def say(finding: Finding) -> None:
            mark = "ok   " if finding.good else "WRONG"
            print(f"  {mark} {finding.what:38} {finding.figure:>9}   (tolerance {finding.tolerance})", flush=True)

        return 0 if compare(model, reference, (width, height), samplers, options.steps, say) else 1
    except LatentdError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
