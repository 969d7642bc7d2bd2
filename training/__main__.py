"""python -m training: draw the data, train by a recipe, judge a checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

RUNS = Path("runs")
GLYPHS = RUNS / "data" / "small-things"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    words = parser.add_subparsers(dest="word", required=True)
    run = words.add_parser("run", help="train by a recipe, or go on where that was stopped")
    run.add_argument("recipe", type=Path)
    run.add_argument("--out", type=Path, help="the run's folder (runs/NAME)")
    data = words.add_parser("data", help="draw the things of the shipped model from two fonts")
    data.add_argument("--out", type=Path, default=GLYPHS)
    judge = words.add_parser("evaluate", help="judge a checkpoint by the classifier of a run")
    judge.add_argument("checkpoint", type=Path)
    judge.add_argument("recipe", type=Path)
    judge.add_argument("--run", type=Path, required=True, help="the run's folder, which has the classifier")
    judge.add_argument("--out", type=Path, required=True, help="where figures and sheets are written")
    shown = words.add_parser("show", help="write a sheet of the pictures that a recipe trains on")
    shown.add_argument("recipe", type=Path)
    shown.add_argument("--out", type=Path, required=True, help="the PNG file")
    given = parser.parse_args(arguments)

    from pipeline.errors import LatentdError
    from training.loop import Interrupted

    try:
        return {"run": _run, "data": _data, "evaluate": _evaluate, "show": _show}[given.word](given)
    except LatentdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what is on the disk", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


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
