"""Rows of measurements: CSV files in git, each row with unit, shape, device, versions and date."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
from pathlib import Path

from engines.machine.cores import available_cores

RESULTS = Path(__file__).parent / "results"
COLUMNS = ["what", "shape", "unit", "p20", "p50", "p80", "runs", "device", "versions", "date"]


def percentiles(values: list[float]) -> tuple[float, float, float]:
    """Return p20, p50 and p80: of few runs, the nearest one."""
    ordered = sorted(values)
    p20, p50, p80 = (ordered[round(q * (len(ordered) - 1))] for q in (0.2, 0.5, 0.8))
    return p20, p50, p80


Figures = dict[tuple[str, str, str], list[float]]  # of each run, by what, shape and unit


class Rows:
    """Appends to results/<name>.csv and prints each row as it comes; unless `keep`, it prints alone."""

    def __init__(self, name: str, packages: tuple[str, ...], *, keep: bool = True) -> None:
        self.path = RESULTS / f"{name}.csv"
        self._keep = keep
        self._stamp = [
            f"{_cpu()}, {available_cores()} cores",
            " ".join(f"{package} {importlib.metadata.version(package)}" for package in packages),
            datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        ]

    def add(self, what: str, shape: str, unit: str, values: list[float], *, say: bool = True) -> None:
        """Append a row, and print it if `say`."""
        p20, p50, p80 = (f"{value:.4g}" for value in percentiles(values))
        if say:
            print(f"{what:34} {p50:>8} {unit:10} (p20 {p20}, p80 {p80}, {len(values)} runs)  {shape}", flush=True)
        if not self._keep:
            return
        self.path.parent.mkdir(exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(COLUMNS)
            writer.writerow([what, shape, unit, p20, p50, p80, len(values), *self._stamp])

    def add_all(self, figures: Figures) -> None:
        """Append a row for each figure."""
        for (what, shape, unit), values in figures.items():
            self.add(what, shape, unit, values)


def _cpu() -> str:
    """Return what the CPU calls itself; "AMD EPYC, family 26 model 2" where that alone says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return "unknown CPU"
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{facts.get('model name', 'CPU')} (family {facts.get('cpu family')}, model {facts.get('model')})"
