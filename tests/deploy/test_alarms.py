"""Alarms name what the server exports, and each leads to a section of docs/operations.md that says what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import LatentdError
from tests.support import promql
from tests.support.scraped import OTHERS, TARGET, families, samples

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/alarms.yml"
(GROUP,) = yaml.safe_load(RULES.read_text())["groups"]
ALARMS: list[dict[str, Any]] = GROUP["rules"]
KNOWN = samples() | OTHERS
PAGE = (ROOT / "docs/operations.md").read_text()

every_alarm = pytest.mark.parametrize("alarm", ALARMS, ids=lambda alarm: alarm["alert"])


@every_alarm
def test_it_is_made_as_prometheus_reads_it(alarm: dict[str, Any]) -> None:
    assert {"alert", "expr", "labels", "annotations"} <= alarm.keys() <= {*alarm, "for"}
    assert re.fullmatch(r"Latentd[A-Z]\w+", alarm["alert"]) and re.fullmatch(r"\d+[smh]", alarm.get("for", "1m"))
    assert alarm["labels"].keys() == {"severity"} and alarm["labels"]["severity"] in ("page", "ticket")
    assert alarm["annotations"].keys() == {"summary", "description", "runbook_url"}
    for text in alarm["annotations"].values():
        assert text.count("{{") == text.count("}}") and len(text) > 15


@every_alarm
def test_it_asks_for_what_the_server_exports(alarm: dict[str, Any]) -> None:
    read = promql.read(alarm["expr"])
    assert read.metrics <= KNOWN.keys(), read.metrics - KNOWN.keys()
    for metric, labels in read.matched.items():
        assert labels <= KNOWN[metric] | TARGET, (metric, labels)
    labels = set.intersection(*(KNOWN[metric] for metric in read.metrics)) | TARGET
    told = set(re.findall(r"\$labels\.(\w+)", " ".join(alarm["annotations"].values())))
    assert read.grouped <= labels and told <= (read.grouped or labels)


@every_alarm
def test_its_section_says_what_to_do(alarm: dict[str, Any]) -> None:
    page, _, anchor = alarm["annotations"]["runbook_url"].partition("#")
    assert page == "docs/operations.md" and anchor == alarm["alert"].lower()
    section = re.search(rf"^#+ {alarm['alert']}\n(.*?)(?=^#|\Z)", PAGE, re.M | re.S)
    assert section, "docs/operations.md has no such heading"
    for word in ("**It means**", "**Look at**", "**Cure**"):
        assert word in section[1], f"{alarm['alert']} does not say {word}"


def test_every_section_is_an_alarm_s() -> None:
    assert re.findall(r"^#+ (Latentd\w+)$", PAGE, re.M) == [alarm["alert"] for alarm in ALARMS]


def test_every_alarm_is_tried() -> None:
    """promtool test rules runs them; which there are is looked at without it."""
    tests = yaml.safe_load((ROOT / "deploy/alarms_test.yml").read_text())
    assert tests["rule_files"] == [RULES.name]
    tried = {case["alertname"] for test in tests["tests"] for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert tried == {alarm["alert"] for alarm in ALARMS}


@pytest.mark.parametrize("name", sorted(families()))
def test_every_metric_is_documented(name: str) -> None:
    short = name.removeprefix("latentd_")
    assert re.search(rf"^\| .*`{short}(\{{[a-z,]+\}})?`", PAGE, re.M), f"no table of docs/operations.md has {short}"


def test_every_label_is_documented() -> None:
    for name, labels in families().items():
        told = re.search(rf"`{name.removeprefix('latentd_')}\{{([a-z,]+)\}}`", PAGE)
        assert set(told[1].split(",") if told else ()) == labels - {"model"}, name


def codes(kind: type[LatentdError]) -> set[str]:
    return {kind.code}.union(*(codes(below) for below in kind.__subclasses__()))


def test_every_code_of_an_error_has_its_cure() -> None:
    import server.app  # noqa: F401 - all errors are known from here on

    table = PAGE[PAGE.index("## What a client is told") :]
    missing = [code for code in codes(LatentdError) if not re.search(rf"^\| {code} \|", table, re.M)]
    assert not missing


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool: it is in Debian's prometheus")
def test_promtool_finds_nothing_wrong() -> None:
    for words in (
        ["check", "rules", "alarms.yml"],
        ["test", "rules", "alarms_test.yml"],
        ["check", "config", "prometheus.yml"],
        ["check", "config", "--syntax-only", "prometheus-kubernetes.yml"],  # whose key is not here
    ):
        done = subprocess.run(["promtool", *words], cwd=ROOT / "deploy", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
