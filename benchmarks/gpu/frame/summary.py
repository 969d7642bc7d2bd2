"""JSON and markdown beside a table of rows: of every section its last run. Targets first, then what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.gpu.frame.report import WRONG, read_rows
from benchmarks.gpu.frame.sections import SECTIONS
from benchmarks.gpu.frame.targets import TARGETS, Row, verdict

_SHOWN = ("what", "case", "mode", "p50", "unit", "rate", "rate_unit", "floor", "of_floor", "status", "note")


def latest(rows: list[Row]) -> list[Row]:
    """Return the rows of each section's last run, sections in order."""
    last = {row["section"]: row["date"] for row in rows}
    order = {name: i for i, name in enumerate(SECTIONS)}
    kept = [row for row in rows if row["date"] == last[row["section"]]]
    return sorted(kept, key=lambda row: order.get(row["section"], len(order)))  # stable: rows stay in order


def target_lines(rows: list[Row]) -> list[str]:
    lines = ["| target | figure | gate | | stretch | |", "|---|---|---|---|---|---|"]
    for target in TARGETS:
        figure, gate, stretch = verdict(target, rows)
        stretched = "" if target.stretch is None else f"{target.stretch:g}"
        lines.append(f"| {target.name} | {figure} | {target.gate:g} | {gate} | {stretched} | {stretch} |")
    return lines


def write(table: Path) -> None:
    """Write `table`.json and `table`.md beside `table`.csv, after every section: they show what is done."""
    rows = latest(read_rows(table))
    if not rows:
        return
    stamp = rows[-1]
    targets = [dict(zip(("figure", "gate", "stretch"), verdict(t, rows), strict=True), name=t.name) for t in TARGETS]
    machine = {"device": stamp["device"], "torch": stamp["torch"], "triton": stamp["triton"], "cuda": stamp["cuda"]}
    full = machine | {"targets": targets, "rows": [{k: v for k, v in row.items() if v} for row in rows]}
    table.with_suffix(".json").write_text(json.dumps(full, indent=1) + "\n")
    table.with_suffix(".md").write_text("\n".join(_page(rows, machine)) + "\n")


def _page(rows: list[Row], machine: dict[str, str]) -> list[str]:
    versions = ", ".join(f"{name} {value or 'absent'}" for name, value in machine.items() if name != "device")
    page = [f"# gpu-check on {machine['device']}", "", versions, "", "## Targets (H200)", "", *target_lines(rows)]
    for title, states in (("Wrong", WRONG), ("Not measured", ("absent", "skipped"))):
        listed = [row for row in rows if row["status"] in states]
        page += ["", f"## {title}: {len(listed)}", ""]
        page += [f"- {row['section']}, {row['what']}, {row['case']} {row['mode']}: {row['note']}" for row in listed]
    for name in dict.fromkeys(row["section"] for row in rows):
        mine = [row for row in rows if row["section"] == name]
        page += ["", f"## {name} ({mine[0]['date']})", "", f"| {' | '.join(_SHOWN)} |", "|" + "---|" * len(_SHOWN)]
        page += [f"| {' | '.join(row[key].replace('|', '/') for key in _SHOWN)} |" for row in mine]
    return page
