"""How long tests take: kept in tests/durations.csv, which orders the files, and compared with after every run."""

from __future__ import annotations

import csv
import datetime
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

KEPT = Path(__file__).parents[1] / "durations.csv"
SLOWEST = 60  # tests that are kept beside all files
# A file is named when it takes this many times its share of a run, and this many seconds more.
TIMES, SECONDS = 2.5, 5.0


def read(path: Path = KEPT) -> dict[str, float]:
    """Return the seconds of files and of the slowest tests, by path and by node id; nothing where nothing is kept."""
    if not path.exists():
        return {}
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {row["name"]: float(row["seconds"]) for row in csv.DictReader(lines)}


def write(path: Path, tests: Counter[str], comment: str) -> None:
    """Write the seconds of `tests` (by node id): of their files, and of the slowest, the longest first."""
    with path.open("w", newline="") as file:
        file.write(f"# {comment}\n")
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("name", "seconds"))
        for rows in (of_files(tests).most_common(), tests.most_common(SLOWEST)):
            table.writerows((name, f"{seconds:.2f}") for name, seconds in rows)


def of_files(tests: Counter[str]) -> Counter[str]:
    """Return the seconds of each file's tests together."""
    files: Counter[str] = Counter()
    for name, seconds in tests.items():
        files[name.partition("::")[0]] += seconds
    return files


def late(files: Counter[str], kept: dict[str, float]) -> list[str]:
    """Return a sentence on each file that takes far more than its committed share of what both know."""
    known = [name for name in files if kept.get(name)]
    pace = sum(files[name] for name in known) / (sum(kept[name] for name in known) or 1)
    return [
        f"{name}: {files[name]:.0f} s, where {pace * kept[name]:.0f} s would be its share (tests/durations.csv)"
        for name in known
        if files[name] > max(TIMES * pace * kept[name], pace * kept[name] + SECONDS)
    ]


def longest_first(items: Iterable[pytest.Item], kept: dict[str, float]) -> list[pytest.Item]:
    """Order tests by what their files took, those of unknown files at first: workers then end together."""
    return sorted(items, key=lambda item: -kept.get(item.nodeid.partition("::")[0], float("inf")))


class Durations:
    """Adds up a session's tests, in whatever worker they run; a plugin of the process that reports."""

    def __init__(self, out: Path | None) -> None:
        self.tests: Counter[str] = Counter()
        self._out, self._begun = out, time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.tests[report.nodeid] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        for sentence in late(of_files(self.tests), read()):
            terminalreporter.write_line(f"warning: {sentence}", yellow=True)
        if self._out is not None:
            from engines.cache.devices import this_cpu

            wall, workers = time.monotonic() - self._begun, config.getoption("numprocesses", None) or 1
            total = f"{len(self.tests)} tests in {wall:.0f} s"
            write(self._out, self.tests, f"{datetime.date.today()}, {this_cpu()}, {workers} workers: {total}")
