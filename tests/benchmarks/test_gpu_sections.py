"""Each section's code, tiny and on the CPU: nothing in it may fail or be wrong; its rows have the targets' names."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.frame import child
from benchmarks.gpu.frame.report import COLUMNS, WRONG, Report, read_rows
from benchmarks.gpu.frame.targets import TARGETS

# The kernels' own sections run in Triton's interpreter, in a process of its own: test_gpu_kernels.py.
# inductor and peer compile, serving starts a server: seconds each, and little else than what these have.
HERE = ("unet", "forms", "vae", "budget", "profile", "captured", "company", "soak")


@pytest.mark.parametrize("section", HERE)
def test_a_section_runs(section: str, tmp_path: Path) -> None:
    stamp = dict.fromkeys(COLUMNS[-5:], "dry")
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    report = Report(section, torch.device("cpu"), torch.float32, files, stamp, until=time.monotonic() + 1000)
    with torch.no_grad():
        assert child.run(report, tmp_path / "state") == 0
    rows = read_rows(files[0])
    assert files[0].read_text() == files[1].read_text() and rows
    assert not [row for row in rows if row["status"] in WRONG]
    assert not [row for row in rows if row["status"] == "skipped"]
    measured = {(row["what"], row["mode"]) for row in rows}
    for target in TARGETS:
        _, what, case, mode = target.rows
        # A CPU has no gaps between replays; of the captured step a dry run's numbers of requests are others.
        if target.rows[0] == section and what != "gap" and not _absent(rows):
            assert (what, mode) in measured, f"{target.name}: {case}"


def _absent(rows: list[dict[str, str]]) -> bool:
    """Are our kernels or the captured step not written yet?"""
    return any("is not written" in row["note"] for row in rows)
