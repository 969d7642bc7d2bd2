"""python -m engines build | check | clean | trt-check: engines of a model, on this machine or for another's card."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from engines.commands.variable import Variable
from latentd.variables import strangers
from pipeline.extras import install


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    if options.command in ("build", "check") and not options.model:
        print("give MODEL, the checkpoint or artifact: a folder, or a .safetensors file", file=sys.stderr)
        return 2
    for sentence in strangers(os.environ):
        print(sentence, file=sys.stderr)
    try:
        from pipeline.errors import LatentdError
    except ModuleNotFoundError as error:
        return _missing(error)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return _command(options.command)(options)
    except ModuleNotFoundError as error:
        return _missing(error)
    except LatentdError as error:
        print(error, file=sys.stderr)
        return 1


def _missing(error: ModuleNotFoundError) -> int:
    print(f"engines need {error.name}, which is not installed: {install('cpu')}", file=sys.stderr)
    return 1


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    if name == "check":
        from engines.commands.check import check

        return check
    if name == "trt-check":
        from engines.tensorrt.ladder.climb import trt_check

        return lambda options: trt_check(options.model, options.log, options.limit)
    from engines.commands.build import build, clean

    return build if name == "build" else lambda _: clean()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, help: str, description: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=help, description=description)
        if name in ("build", "check"):
            model = os.environ.get("LATENTD_MODEL")
            subparser.add_argument(
                "model",
                type=Path,
                nargs="?",
                default=Path(model) if model else None,
                help="a checkpoint, a folder or a .safetensors file, or an artifact",
            )
        return subparser

    def flag(subparser: argparse.ArgumentParser, name: str, default: str, help: str, *names: str) -> None:
        """Add an option whose default is the variable LATENTD_<NAME>, as every variable of make has that name too."""
        variable = f"LATENTD_{name.upper()}"
        value = os.environ.get(variable)
        default = Variable(variable, value) if value else default
        subparser.add_argument(*(names or [f"--{name}"]), default=default, help=help)

    build = command(
        "build",
        "build TensorRT's plans ahead of serving",
        "Says what it will build, builds each plan in a process of its own, skips what is built and valid, and ends "
        "with a table. Run again after a kill: it goes on where it was. Exit status 1 when a plan was not built. "
        "OpenVINO and ONNX Runtime need nothing built: for them it checks that the weights fit.",
    )
    flag(build, "backend", "auto", "auto, openvino, onnxruntime, tensorrt_rtx, tensorrt (default auto)")
    flag(build, "arch", "", "the card to build for, such as sm_89 (TensorRT; default: this one)", "--target", "--arch")
    flag(build, "rows", "", "buckets, such as 2,4,8 (default 2,4,8)")
    flag(build, "sizes", "", "of pictures, such as 512x512,512x768 (default: the model's own)")
    flag(build, "precision", "auto", "auto, f16, bf16, f32 (default auto)")
    flag(build, "chunks", "1", "lengths of prompts, in lengths of the text encoder, such as 1,2,3 (default 1)")
    flag(build, "prediction", "auto", "epsilon or v_prediction: of a single file that does not tell, as SD 2 does not")
    flag(build, "attention", "native", "native, or triton: our kernels inside the plans of tensorrt (default native)")

    check = command(
        "check",
        "compare a backend with torch in float32",
        "Each network's error, rows alone against rows in company, and whole trajectories, against torch in float32 "
        "(the extra `export`). Exit status 1 when anything is past its tolerance, or nothing can be compared here.",
    )
    flag(check, "backend", "auto", "auto, openvino, onnxruntime, torch, experimental: tensorrt, tensorrt_rtx (auto)")
    flag(check, "precision", "auto", "auto, f32, f16, bf16 (default auto)")
    flag(check, "device", "auto", "auto, cpu, cuda (default auto)")
    flag(check, "pixels", "auto", "auto, exact, fast (default auto)")
    flag(check, "attention", "native", "native or triton: which plans of tensorrt (experimental; default native)")
    flag(check, "prediction", "auto", "epsilon or v_prediction: of a single file that does not tell, as SD 2 does not")
    flag(check, "size", "", "width x height, such as 256x256 (default: the model's own)")
    flag(check, "samplers", "ddim,euler,dpmpp_2m", "separated by commas, or all")
    flag(check, "steps", "20", "default 20")

    ladder = command(
        "trt-check",
        "what of our TensorRT plans (experimental) works on this machine",
        "Climbs from TensorRT's import to the whole UNet, each rung in a process of its own, and writes a log for an "
        "issue. Exit status 1 where the UNet does not run.",
    )
    ladder.add_argument("--model", type=Path, default=Path("demo/small-things"), help="default: the embedded model")
    ladder.add_argument("--log", type=Path, default=Path("trt-check.log"), help="default trt-check.log")
    ladder.add_argument("--limit", type=float, default=900.0, help="seconds a rung may take (default 900)")

    command(
        "clean",
        "empty the cache",
        "Removes the engines, artifacts, graphs and measurements in $LATENTD_CACHE, and says what it removed. What a "
        "live process uses stays.",
    )
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
