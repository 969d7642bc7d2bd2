"""What a section of gpu-check reports to: rows of one table, written as they come.

A row is a time, a rate, a finding (`ok` or `wrong`) or the reason why there is none (`absent`, `skipped`, `failed`).
`wrong` and `failed` make the whole check end with a code that is not zero.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # gpu_check itself says in a sentence that torch is missing
    import torch

COLUMNS = tuple(
    "section,what,case,mode,unit,p20,p50,p80,runs,rate,rate_unit,floor,of_floor,status,note,"  # noqa: SIM905
    "device,torch,triton,cuda,date".split(",")
)
WRONG = ("wrong", "failed")
# Dense fp16 and bytes read and written, as measured on one H200; taken where the section `ceilings` has not run.
ASSUMED = 790e12, 4.3e12


class AbsentError(Exception):
    """Says that what a case needs is not installed or not written; `wrong` if it should have been there."""

    def __init__(self, what: str, *, wrong: bool = False) -> None:
        super().__init__(what)
        self.wrong = wrong


@dataclass(frozen=True)
class Case:
    """Holds one measurement of a section. A section's cases run in order; a failed one does not stop the next."""

    name: str
    run: Callable[[], None]
    seconds: float | None = None  # after which it is ended, where its section's limit is not its own


@dataclass
class Report:
    """Reports one section's run: where it computes, where its rows go, until when it may."""

    section: str
    device: torch.device
    dtype: torch.dtype
    files: list[Path]  # the same table, in each
    stamp: dict[str, str]
    until: float  # time.monotonic() after which no case begins
    _ceilings: tuple[float, float] | None = None

    @property
    def dry(self) -> bool:
        """Return whether this is a dry run, on a CPU and tiny: the code runs, the figures mean nothing."""
        return self.device.type == "cpu"

    @property
    def seconds_left(self) -> float:
        return self.until - time.monotonic()

    def time(
        self,
        what: str,
        case: str,
        mode: str,
        seconds: list[float],
        *,
        flops: float = 0,
        moved: float = 0,
        floor: float | None = None,
        note: str = "",
    ) -> float:
        """Write a row of times, the rate and the floor (the larger of arithmetic and bytes); returns the median, in s.

        flops and moved (bytes) are the fewest that the operation needs; floor, in seconds, replaces what they give.
        """
        median = sorted(seconds)[len(seconds) // 2]
        matrix, memory = self.ceilings()
        if floor is None:
            floor = max(flops / matrix, moved / memory)
        bound_by_arithmetic = flops / matrix > moved / memory
        rate, unit = (flops / median / 1e12, "TFLOP/s") if bound_by_arithmetic else (moved / median / 1e9, "GB/s")
        microseconds = [1e6 * value for value in seconds]
        self.row(what, case, mode, "us", microseconds, rate=(rate, unit), floor=1e6 * floor, note=note)
        return median

    def row(
        self,
        what: str,
        case: str,
        mode: str,
        unit: str,
        values: list[float],
        *,
        rate: tuple[float, str] = (0, ""),
        floor: float = 0,
        status: str = "",
        note: str = "",
    ) -> None:
        """Write a row: `values` in `unit`, `floor` too, the least possible of a time."""
        ordered = sorted(values)
        points = [f"{ordered[round(q * (len(ordered) - 1))]:.5g}" for q in (0.2, 0.5, 0.8)] if ordered else ["", "", ""]
        median = float(points[1]) if ordered else 0.0
        of_floor = f"{floor / median:.3f}" if floor and median else ""
        fast = f"{rate[0]:.4g}" if rate[0] else ""
        parts = (points[1], unit, fast, fast and rate[1], of_floor and f"{of_floor} of the floor", status.upper(), note)
        print(f"  {what:20} {case:30} {mode:18}", *(part for part in parts if part), flush=True)
        line = [self.section, what, case, mode, unit, *points, len(values) or "", fast, fast and rate[1]]
        line += [f"{floor:.5g}" if floor else "", of_floor, status, note]
        write_row(self.files, [*line, *self.stamp.values()])

    def expect(self, good: bool, what: str, case: str, mode: str, figure: float, note: str = "") -> None:
        """Write a finding: `figure` (an error, a count) and whether it is as it must be."""
        self.row(what, case, mode, "", [figure], status="ok" if good else "wrong", note=note)

    def tell(self, status: str, case: str, note: str, what: str = "case") -> None:
        """Write why there is no figure: status skipped, absent or failed."""
        self.row(what, case, "", "", [], status=status, note=" ".join(note.split())[:300])

    def ceilings(self) -> tuple[float, float]:
        """Return FLOP/s of a large matrix product and bytes/s of a large copy: the last ones measured, or ASSUMED."""
        if self._ceilings:
            return self._ceilings
        rates = {"matmul": ASSUMED[0], "copy": ASSUMED[1]}
        for row in read_rows(self.files[0]):
            if row["section"] == "ceilings" and row["mode"] == "held" and row["device"] == self.stamp["device"]:
                rates[row["what"]] = float(row["p50"]) * (1e12 if row["what"] == "matmul" else 1e9)
        self._ceilings = rates["matmul"], rates["copy"]
        return self._ceilings


def write_row(files: list[Path], line: list[object]) -> None:
    for path in files:
        new = not path.exists()
        with path.open("a", newline="") as file:  # closed, hence on disk, before the next measurement begins
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, line] if new else [line])


def read_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def stamp_of(text: str) -> dict[str, str]:
    """Read a stamp from its JSON: device, torch, triton, cuda, date, in this order."""
    stamp = json.loads(text)
    return {key: str(stamp[key]) for key in COLUMNS[-5:]}
