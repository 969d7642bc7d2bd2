"""What was attacked, before and after: `python -m benchmarks.attack [--base CLONE] [--items stall,backlog]`.

Each item starts a server process of its own with the embedded model, does what once hurt it, and prints figures; with
--base the clone's server is attacked by the same code in turn. An attack lasts seconds; `make load`, `python -m
benchmarks.readers` and `python -m benchmarks.fairness` measure overload, unread calls and fairness at length.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import load
from benchmarks.attack.endings import grace, limit, unread
from benchmarks.attack.floods import backlog, descriptors, flood, health, timings
from benchmarks.attack.stalls import stall
from benchmarks.attack.trial import Figure, trial
from benchmarks.rows import Figures, Rows
from benchmarks.serving import ROOT

_OVERLOAD = ("goodput over control run", "late of the admitted", "seat-steps delivered, as clients saw")


def overload(folder: Path, seconds: float = 10.0) -> list[Figure]:
    """Measure as `make load` does, in short."""
    figures: Figures = defaultdict(list)
    with trial(folder) as server:
        asyncio.run(load.measure("", server.address, server.metrics, seconds, figures))
    ratios = ((re.sub(", $", "", what), shape, values[0]) for (what, shape, _), values in figures.items())
    return [
        Figure(f"{what}, {shape.split(',')[0]}", "ratio", value) for what, shape, value in ratios if what in _OVERLOAD
    ]


ITEMS: dict[str, Callable[[Path], list[Figure]]] = {
    "stall": stall,
    "overload": overload,
    "backlog": backlog,
    "flood": flood,
    "unread": unread,
    "descriptors": descriptors,
    "health": health,
    "grace": grace,
    "limit": limit,
    "timings": timings,
}


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.attack", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", type=Path, help="a clone to attack in turn with this one")
    parser.add_argument("--items", default=",".join(ITEMS), help=f"default {','.join(ITEMS)}")
    parser.add_argument("--long", action="store_true", help="stops of 3, 10 and 30 s, overload of 60 s")
    parser.add_argument("--dry", action="store_true", help="print, and keep no rows")
    options = parser.parse_args()
    items = dict(ITEMS)
    if options.long:
        items |= {"stall": partial(stall, seconds=(3.0, 10.0, 30.0)), "overload": partial(overload, seconds=60.0)}
    chosen = options.items.split(",")
    if unknown := [name for name in chosen if name not in items]:
        parser.error(f"there is no item {unknown[0]}; there are {', '.join(items)}")
    rows = Rows("attack-cpu", ("openvino", "grpcio", "numpy"), keep=not options.dry)
    folders = {**({"base": options.base.resolve()} if options.base else {}), "this": ROOT}
    print(f"{'':100} {'  '.join(f'{whose:>10}' for whose in folders)}")
    for name in chosen:
        seen: dict[Figure, dict[str, float]] = {}
        for whose, folder in folders.items():
            for figure in items[name](folder):
                seen.setdefault(Figure(figure.what, figure.unit, 0.0), {})[whose] = figure.value
        for figure, values in seen.items():
            cells = (f"{values[whose]:10.4g}" if whose in values else f"{'-':>10}" for whose in folders)
            print(f"{name + ': ' + figure.what:100} {'  '.join(cells)} {figure.unit}", flush=True)
            for whose, value in values.items():
                rows.add(f"{name}, {whose}", figure.what, figure.unit, [value], say=False)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(main())
