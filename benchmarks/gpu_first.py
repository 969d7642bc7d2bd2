"""Is anything wrong at all on this GPU? `python -m benchmarks.gpu_first` (make gpu-first), 150 seconds at most.

Every kernel once against float64, the captured step of a small network, one bucket of SD 1.5, one picture: each stage
in a process of its own, as in benchmarks.gpu_check, whose table and exit codes these are. Run it before gpu-check.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks import gpu_check
from benchmarks.gpu.frame.sections import FIRST, FIRST_TOTAL


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_first", description="A first look at a GPU.")
    parser.add_argument("--dry-run", action="store_true", help="run the code, not the measurement: tiny, on the CPU")
    options = parser.parse_args(argv)
    return gpu_check.measure([(stage, stage.seconds) for stage in FIRST], FIRST_TOTAL, options.dry_run)


if __name__ == "__main__":
    sys.exit(main())
