"""python -m training: draw the data, train by a recipe, judge a checkpoint."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUNS = Path("runs")
GLYPHS = RUNS / "data" / "small-things"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    words = parser.add_subparsers(dest="word", required=True)
    run = words.add_parser("run", help="train by a recipe, or go on where that was stopped")
    run.add_argument("recipe", type=Path)
    run.add_argument("--out", type=Path, help="the run's folder (runs/NAME)")
    run.add_argument("--processes", type=_positive, default=1, help="that share each batch (1)")
    data = words.add_parser("data", help="draw the things of the shipped model from two fonts")
    data.add_argument("--out", type=Path, default=GLYPHS)
    judge = words.add_parser("evaluate", help="judge a checkpoint by the classifier of a run")
    judge.add_argument("checkpoint", type=Path)
    judge.add_argument("recipe", type=Path)
    judge.add_argument("--run", type=Path, required=True, help="the run's folder, which has the classifier")
    judge.add_argument("--out", type=Path, required=True, help="where figures and sheets are written")
    defaults = words.add_parser("defaults", help="compare steps, guidance and samplers by the classifier of a run")
    defaults.add_argument("checkpoint", type=Path)
    defaults.add_argument("recipe", type=Path)
    defaults.add_argument("--run", type=Path, required=True, help="the run's folder, which has the classifier")
    defaults.add_argument("--out", type=Path, required=True, help="the CSV file")
    defaults.add_argument("--steps", type=_list_of(int), default=[8, 12, 20], help="as 8,12,20")
    defaults.add_argument("--guidance", type=_list_of(float), default=[1.5, 2, 3, 4.5, 6], help="as 1.5,2,3,4.5,6")
    defaults.add_argument("--sampler", type=_list_of(str), default=["dpmpp_2m"], help="as dpmpp_2m,euler")
    shown = words.add_parser("show", help="write a sheet of the pictures that a recipe trains on")
    shown.add_argument("recipe", type=Path)
    shown.add_argument("--out", type=Path, required=True, help="the PNG file")
    given = parser.parse_args(arguments)

    from training.launch import launch, stop_with_parent

    try:
        if given.word == "run" and given.processes > 1:
            command = [sys.executable, "-m", "training", "run", str(given.recipe)]
            return launch([*command, *(["--out", str(given.out)] if given.out else [])], given.processes)
        stop_with_parent()
        return _do(given)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what is on the disk", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _do(given: argparse.Namespace) -> int:
    """Do a word. What it imports takes seconds, in which Ctrl-C comes too."""
    from pipeline.errors import LatentdError
    from training.errors import Deserted
    from training.launch import DESERTED
    from training.loop import Interrupted

    does = {"run": _run, "data": _data, "evaluate": _evaluate, "defaults": _defaults, "show": _show}[given.word]
    try:
        return does(given)
    except LatentdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 130
    except Deserted as error:
        print(f"error: {error}", file=sys.stderr)
        return DESERTED


def _run(given: argparse.Namespace) -> int:
    from training import processes
    from training.recipe import read_recipe
    from training.run import Run

    recipe = read_recipe(given.recipe)
    joined = processes.begin(recipe.device)
    try:
        checkpoint = Run(recipe, given.out or RUNS / recipe.name, joined, _say).everything()
        if joined.first:
            print(f"{checkpoint} is ready: make serve MODEL={checkpoint}")
    finally:
        processes.end()
    return 0


def _data(given: argparse.Namespace) -> int:
    from training.data.fonts import write_glyphs

    things = write_glyphs(given.out)
    print(f"{given.out} has {len(things)} things in two styles; look at {given.out}/sheet-color.png and sheet-ink.png")
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    from training.command import judged
    from training.recipe import read_recipe

    judged(given.checkpoint, read_recipe(given.recipe), given.run, given.out, _say)
    return 0


def _defaults(given: argparse.Namespace) -> int:
    from training.command import Way, compared_defaults
    from training.recipe import read_recipe

    ways = [Way(*each) for each in itertools.product(given.sampler, given.steps, given.guidance)]
    compared_defaults(given.checkpoint, read_recipe(given.recipe), given.run, ways, given.out, _say)
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes; it must be at least 1")
    return int(text)


def _list_of(kind: type) -> Callable[[str], list[Any]]:
    def read(text: str) -> list[Any]:
        return [kind(each) for each in text.split(",")]

    read.__name__ = f"list of {kind.__name__}"  # which argparse names where it refuses one
    return read


def _show(given: argparse.Namespace) -> int:
    from training.command import shown
    from training.recipe import read_recipe

    shown(read_recipe(given.recipe), given.out)
    print(given.out)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
