"""python -m kernels [NAME..] [--arch 90 ..] [--csv FILE]: compile every variant of every kernel, without a GPU.

Prints a row a variant and architecture, and exits 1 if one spills, became serial (C7512), or needs more shared memory
than its architecture, or a plugin, has.
A kernel is a file in this folder with VARIANTS; NAME is the file's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    import triton
except ModuleNotFoundError:
    sys.exit("kernels need triton, which this Python does not have: make kernels in a clone installs it")

from kernels.aot import ARCHITECTURES
from kernels.rows import rows, write

LINE = (
    "{kernel:16} {variant:58} {arch:6} {registers:>3} registers {spills:>3} spilled {shared:>6} B shared"
    "  cp.async {cp_async:5} wgmma {wgmma:3} {faults}"
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="kernel files (default: all)")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="write the rows there, in place of those of these kernels and this Triton",
    )
    given = parser.parse_args()
    printed = []
    for row in rows(given.names, given.arch):
        printed.append(row)
        print(LINE.format(**row).rstrip(), flush=True)
    if given.csv:
        write(given.csv, printed)
    bad = sum(bool(row["faults"]) for row in printed)
    print(f"{len(printed)} compiled with Triton {triton.__version__}, {bad} with faults")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
