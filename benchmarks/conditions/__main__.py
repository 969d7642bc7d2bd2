"""What pictures as conditions cost who has none: `python -m benchmarks.conditions [--base CLONE]`, under four minutes.

First other requests' p95 beside uploads over that beside their control (uploads.py), the embedded model in a server
process, both in turn. Then, with --base, a clone at a commit that knows no conditions: the time of a full step of plain
seats here over there, in a child process of each, in turn (stepping.py).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.conditions import stepping, uploads
from benchmarks.rows import Rows
from benchmarks.serving import ROOT, server_process

MODEL = ROOT / "demo" / "small-things"
_PATIENT = ("--queue-seconds", "3600")  # on a busy machine too nobody is refused
_EXPECTED = {"pictures": ("OK", "OK"), "refused files": ("INVALID_ARGUMENT", "INVALID_ARGUMENT")}


def beside_uploads(rows: Rows, turns: int, seconds: float) -> None:
    """Add the rows of other requests beside uploads and beside their controls."""
    figures: dict[str, list[float]] = defaultdict(list)
    kinds = uploads.makes()
    with server_process(MODEL, flags=_PATIENT, words=("server",)) as (line, _, _):
        address = re.findall(r"gRPC (\S+),", line)[0]
        asyncio.run(uploads.others(address, 3.0, 1.0, None))  # warm
        for turn in range(turns):
            figures["alone"].append(asyncio.run(uploads.others(address, seconds, 1.0, None))[0])
            for kind, (rate, *makes) in kinds.items():
                pair = [0.0, 0.0]
                for which in (0, 1) if turn % 2 else (1, 0):
                    pair[which], ends = asyncio.run(uploads.others(address, seconds, rate, makes[which]))
                    if set(ends) != {_EXPECTED[kind][which]}:
                        raise SystemExit(f"{kind}: the uploads ended with {ends}")
                for name, value in zip(("", ", control"), pair, strict=True):
                    figures[f"{kind}{name}"].append(value)
    shape = f"{uploads.CALLERS} callers of {uploads.STEPS} steps, {seconds:g} s a run"
    for what, values in figures.items():
        rate = f", {kinds[what.partition(',')[0]][0]:g} uploads a second" if what != "alone" else ""
        rows.add(f"others' p95, {what}", shape + rate, "ms", values)
    for kind, (rate, *_) in kinds.items():
        pairs = zip(figures[kind], figures[f"{kind}, control"], strict=True)
        ratios = [beside / control for beside, control in pairs]
        rows.add(f"others' p95, {kind} over control", f"{shape}, {rate:g} uploads a second", "ratio", ratios)


def plain_steps(rows: Rows, base: Path, turns: int, steps: int) -> None:
    """Add the rows of a full step of plain seats, here and in a clone that knows no conditions."""
    figures: dict[str, list[float]] = defaultdict(list)
    with _child(ROOT) as ours, _child(base) as theirs:
        children = {"this": ours, "base": theirs}
        for child in children.values():
            _stepped(child, steps)  # warm
        for turn in range(turns):
            for whose in ("this", "base") if turn % 2 else ("base", "this"):
                figures[whose].append(_stepped(children[whose], steps))
    shape = f"small-things, {stepping.SEATS} guided seats without conditions, median of {steps} steps a turn"
    for whose, values in figures.items():
        rows.add(f"full step, {whose}", shape, "ms", values)
    ratios = [this / base for this, base in zip(figures["this"], figures["base"], strict=True)]
    rows.add("full step, this over base", shape, "ratio", ratios)


@contextlib.contextmanager
def _child(folder: Path) -> Iterator[subprocess.Popen[str]]:
    code = Path(stepping.__file__).read_text()
    command = [sys.executable, "-c", code, str(MODEL)]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def _stepped(child: subprocess.Popen[str], steps: int) -> float:
    """Return the median milliseconds of so many steps."""
    assert child.stdin and child.stdout
    child.stdin.write(f"{steps}\n")
    child.stdin.flush()
    took = sorted(map(float, child.stdout.readline().split()))
    if not took:
        raise SystemExit("the child that steps has ended")
    return took[len(took) // 2]


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.conditions", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=4, help="of uploads; three times as many of steps (default 4)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of a run beside uploads (default 6)")
    parser.add_argument("--steps", type=int, default=24, help="of a turn of steps (default 24)")
    parser.add_argument("--base", type=Path, help="a clone without conditions to measure steps in turn with this one")
    parser.add_argument("--dry", action="store_true", help="print, and keep no rows")
    options = parser.parse_args()
    rows = Rows("conditions-cpu", ("openvino", "grpcio", "numpy", "pillow"), keep=not options.dry)
    beside_uploads(rows, options.turns, options.seconds)
    if options.base:
        plain_steps(rows, options.base, 3 * options.turns, options.steps)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    sys.exit(main())
