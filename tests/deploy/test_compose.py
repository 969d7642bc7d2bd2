"""What can be wrong with compose, Prometheus and the dashboard without starting them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.metrics import Metrics
from server.settings import read_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/latentd.json").read_text())


def filled(text: str) -> str:
    """Fill in compose's variables as where none of them is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_the_root_includes_it() -> None:
    """Under the same name, so that volumes are the same ones whichever file is named."""
    root = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert root == {"name": COMPOSE["name"], "include": ["deploy/compose.yaml"]}


@pytest.mark.parametrize("name", SERVICES)
def test_it_publishes_on_this_machine_alone(name: str) -> None:
    assert SERVICES[name]["ports"] and all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


@pytest.mark.parametrize("name", SERVICES)
def test_what_it_mounts_is_there(name: str) -> None:
    for volume in map(filled, SERVICES[name]["volumes"]):
        source = volume.split(":")[0]
        assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume


def test_the_server_may_do_little() -> None:
    server = SERVICES["latentd"]
    assert server["read_only"] and server["cap_drop"] == ["ALL"] and "profiles" not in server
    assert "no-new-privileges:true" in server["security_opt"] and "/models:ro" in filled(server["volumes"][0])
    assert [name for name, service in SERVICES.items() if service.get("profiles")] == ["prometheus", "grafana"]


def test_what_it_tells_the_server_are_settings() -> None:
    environment: dict[str, str] = SERVICES["latentd"]["environment"]
    unset = read_settings([], {name: filled(value) for name, value in environment.items()})
    plain = dataclasses.replace(read_settings([], {}), insecure=True)  # nobody else reaches what it publishes
    assert unset == plain, "a variable that nobody set changes nothing"
    chosen = {"LATENTD_MODEL": "/models/a", "LATENTD_SEATS": "3", "LATENTD_SIZES": "64x64", "LATENTD_INSECURE": "off"}
    assert chosen.keys() == environment.keys() and read_settings([], chosen).seats == 3
    ports = {port.rpartition(":")[2] for port in SERVICES["latentd"]["ports"]}
    assert {str(value) for name, value in vars(unset).items() if name.endswith("_port") and value} <= ports
    grace = float(SERVICES["latentd"]["stop_grace_period"].removesuffix("s"))
    assert grace > unset.grace, "it ends by itself before it is killed"


def test_the_card_s_file_changes_only_what_a_card_needs() -> None:
    cuda = yaml.safe_load((DEPLOY / "compose.cuda.yaml").read_text())["services"]
    assert cuda.keys() == {"latentd"} and cuda["latentd"].keys() == {"image", "build", "deploy"}
    for service in (SERVICES["latentd"], cuda["latentd"]):
        context = DEPLOY / SERVICES["latentd"]["build"]["context"]
        assert (context / service["build"]["dockerfile"]).is_file()


def test_prometheus_asks_the_server_and_grafana_asks_prometheus() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"latentd:{read_settings([], {}).metrics_port}"]}]
    provisioning = DEPLOY / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards/latentd.yaml").read_text())["providers"]
    mounts = {filled(volume).split(":")[1] for volume in SERVICES["grafana"]["volumes"]}
    assert provider["options"]["path"] in mounts
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/latentd.json"
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}


def samples() -> dict[str, set[str]]:
    """Return the names that a scrape has, and each one's labels; a metric with labels is given one value of each."""
    metrics = Metrics("small-things")
    metrics.request("grpc", "OK", 1.0)
    metrics.cancelled("seat")
    metrics.given_up("seat")
    metrics._engine_info.labels("small-things", "openvino", "f32", "0" * 12).set(1)
    return {sample.name: {*sample.labels} for family in metrics.registry.collect() for sample in family.samples}


def test_every_metric_and_label_of_the_dashboard_is_one_of_the_server_s() -> None:
    known = samples()
    shown = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    shown.append(DASHBOARD["templating"]["list"][0]["query"]["query"])
    names = {name for text in shown for name in re.findall(r"latentd_\w+", text)}
    assert len(names) > 12 and names <= known.keys(), names - known.keys()
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            assert text.count("(") == text.count(")") and text.count("{") == text.count("}")
            (*_, last) = re.findall(r"latentd_\w+", text)
            labels = {word for by in re.findall(r"by \(([^)]*)\)", text) for word in re.split(r",\s*", by)}
            labels |= set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert labels <= known[last], (text, labels - known[last])


def test_the_panels_are_told_apart() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len({*ids}) == len({*titles}) == len(ids)
    spots = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]}
    assert len(spots) == len(ids) and all(
        panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in DASHBOARD["panels"]
    )
