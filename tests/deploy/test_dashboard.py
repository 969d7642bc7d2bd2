"""The dashboard asks for nothing that the server does not export, and leaves nothing out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support import promql
from tests.support.scraped import OTHERS, TARGET, families, samples

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/latentd.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
KNOWN = samples() | OTHERS


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_metric_and_label_of_a_panel_is_one_of_the_server_s(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        read = promql.read(target["expr"])
        assert read.metrics <= KNOWN.keys(), read.metrics - KNOWN.keys()
        for metric, labels in read.matched.items():
            assert labels <= KNOWN[metric] | TARGET, (metric, labels)
        told = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        labels = set.intersection(*(KNOWN[metric] for metric in read.metrics)) | TARGET | {"le"}
        assert read.grouped | told <= labels, target
        grouped = re.search(r"\b(sum|min|max)\b", target["expr"])
        assert not grouped or told <= read.grouped, "what is summed up has no label but those of by"


def test_the_variables_are_labels_of_a_metric() -> None:
    for variable in DASHBOARD["templating"]["list"]:
        asked = re.fullmatch(r"label_values\((\w+)(?:\{[^}]*\})?, (\w+)\)", variable["query"]["query"])
        assert asked, variable
        metric, label = asked.groups()
        assert label == variable["name"] and label in KNOWN[metric] | TARGET
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$(?!__)(\w+)", json.dumps(PANELS)))
    assert used == names == {"model", "instance"}


def test_every_metric_is_shown() -> None:
    """All but what is of no use in a picture: docs/operations.md has those too (tests/deploy/test_alarms.py)."""
    shown = {
        metric for panel in PANELS for target in panel["targets"] for metric in promql.read(target["expr"]).metrics
    }
    plain = {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in shown}
    assert families().keys() - plain == {"process_virtual_memory_bytes"}


def test_the_panels_are_told_apart_and_do_not_overlap() -> None:
    ids, titles = [panel["id"] for panel in PANELS], [panel["title"] for panel in PANELS]
    assert len({*ids}) == len({*titles}) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & own, panel["title"]
        cells |= own
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"prometheus"}


def test_the_reader_of_expressions_can_say_no() -> None:
    good = promql.read('sum by (a) (rate(x_total{b=~"c"}[5m])) / on (d) y > 0.5 or vector(0)')
    assert (good.metrics, good.grouped, good.matched["x_total"]) == ({"x_total", "y"}, {"a", "d"}, {"b"})
    for bad in ("sum(x", "x)", "rat(x[5m])", "x{b=c}", "rate(x[5 m])", "x $ y", "1 + 2"):
        with pytest.raises(AssertionError):
            promql.read(bad)
