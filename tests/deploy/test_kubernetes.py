"""What can be wrong with the manifests without a cluster: fields, and names that must be those of something else."""

from __future__ import annotations

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipeline.checkpoint.opened import model_id
from server.doors.grpc import LIVE, SERVICE
from server.metrics import Metrics
from server.settings import PREFIX, Settings, read_settings
from tests.support.manifests import (
    BALANCER,
    BASE,
    DEPLOY,
    INFERENCE,
    OBJECTS,
    RUNTIME,
    SERVER,
    SETTINGS,
    VERSIONS,
    Object,
    check,
    container,
    documents,
    merged,
    pod,
    the,
)


def on_a_card() -> Object:
    (patch,) = documents("kubernetes/gpu/server.yaml")
    return merged(SERVER, patch)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_one_of_its_kind(version: str) -> None:
    for thing in (*OBJECTS, RUNTIME, INFERENCE, on_a_card()):
        check(thing, version)


@pytest.mark.parametrize("place", ["metadata.annotation", "spec.containers.0.readinesProbe", "spec.multimodel"])
def test_a_misspelt_field_is_found(place: str) -> None:
    spoilt = copy.deepcopy(RUNTIME)
    *path, last = place.split(".")
    inner: Any = spoilt
    for step in path:
        inner = inner[int(step)] if step.isdigit() else inner[step]
    inner[last] = {}
    with pytest.raises(jsonschema.ValidationError, match=last):
        check(spoilt, VERSIONS[-1])
    spoilt = copy.deepcopy(SERVER)
    container(spoilt)["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        check(spoilt, VERSIONS[-1])


def test_kustomize_reads_files_that_are_there_and_makes_what_is_mounted() -> None:
    made: set[str] = set()
    for folder in ("", "kubernetes", "kubernetes/gpu"):
        (kustomization,) = documents(f"{folder}/kustomization.yaml".lstrip("/"))
        assert kustomization["kind"] == ("Component" if folder.endswith("gpu") else "Kustomization")
        files = [*kustomization.get("resources", ()), *(patch["path"] for patch in kustomization.get("patches", ()))]
        for generator in kustomization.get("configMapGenerator", ()):
            files += generator["files"]
            made.add(generator["name"])
        assert files and all((DEPLOY / folder / file).exists() for file in files)
    assert set(documents("kubernetes/kustomization.yaml")[0]["resources"]) == set(BASE)
    mounted = {
        volume["configMap"]["name"]
        for deployment in (SERVER, BALANCER)
        for volume in pod(deployment)["volumes"]
        if "configMap" in volume
    }
    assert mounted == made == {"latentd-settings", "latentd-envoy"}


@pytest.mark.parametrize("deployment", [SERVER, BALANCER], ids=["server", "balancer"])
def test_what_selects_a_pod_finds_it(deployment: Object) -> None:
    name, labels = deployment["metadata"]["name"], deployment["spec"]["template"]["metadata"]["labels"]
    service, budget = the("Service", name)["spec"], the("PodDisruptionBudget", name)["spec"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["selector"] == labels
    assert budget["selector"]["matchLabels"] == labels
    named = {port["name"]: port["containerPort"] for port in container(deployment)["ports"]}
    assert {port["name"]: port["port"] for port in service["ports"]} == named
    for volume in container(deployment)["volumeMounts"]:
        assert volume["name"] in {one["name"] for one in pod(deployment)["volumes"]}


def test_the_network_lets_the_balancer_and_prometheus_in() -> None:
    policy = the("NetworkPolicy", "latentd")["spec"]
    assert policy["podSelector"]["matchLabels"] == SERVER["spec"]["template"]["metadata"]["labels"]
    balancer, prometheus = policy["ingress"]
    assert balancer["from"][0]["podSelector"]["matchLabels"] == BALANCER["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in container(SERVER)["ports"]}
    assert [one["port"] for one in (*balancer["ports"], *prometheus["ports"])] == ["http", "grpc", "metrics"]
    assert ports == {"http", "grpc", "metrics"} and policy["egress"] == []


def test_prometheus_finds_the_servers_and_brings_a_key() -> None:
    """An annotation of the pods would have it come without one, and hear 401."""
    assert "annotations" not in SERVER["spec"]["template"]["metadata"]
    (job,) = yaml.safe_load((DEPLOY / "prometheus-kubernetes.yml").read_text())["scrape_configs"]
    assert job["job_name"] == "latentd" and job["authorization"]["credentials_file"]
    labels = {
        f"__meta_kubernetes_pod_label_{re.sub(r'[^a-z]', '_', name)}": value
        for name, value in SERVER["spec"]["template"]["metadata"]["labels"].items()
    } | {"__meta_kubernetes_pod_container_port_name": "metrics"}
    assert "metrics" in {port["name"] for port in container(SERVER)["ports"]}
    for rule in job["relabel_configs"][:2]:
        assert rule["action"] == "keep" and rule["regex"] == ";".join(labels[name] for name in rule["source_labels"])


def test_the_servers_are_told_settings_that_there_are() -> None:
    ports = {port["name"]: port["containerPort"] for port in container(SERVER)["ports"]}
    assert ports == {"http": SETTINGS.http_port, "grpc": SETTINGS.grpc_port, "metrics": SETTINGS.metrics_port}
    assert SETTINGS.max_calls_caller == SETTINGS.max_calls, "all who come through the balancer are one caller"
    known = {PREFIX + name.upper() for name in vars(Settings())} | {"LATENTD_CONFIG", "LATENTD_CACHE_GB"}
    for one in (container(SERVER), RUNTIME["spec"]["containers"][0]):
        environment = {variable["name"]: variable["value"] for variable in one["env"]}
        assert environment.keys() <= known
        read_settings([], {**environment, "LATENTD_CONFIG": ""})
    mounts = {mount["mountPath"] for mount in container(SERVER)["volumeMounts"]}
    files = {variable["value"] for variable in container(SERVER)["env"] if variable["value"].startswith("/")}
    assert {str(Path(file).parent) for file in files} <= mounts and {"/cache", "/tmp"} <= mounts


@pytest.mark.parametrize("one", [container(SERVER), RUNTIME["spec"]["containers"][0]], ids=["server", "kserve"])
def test_probes_ask_what_health_knows_and_none_that_may_kill_asks_whether_it_serves(one: Object) -> None:
    probes = {kind: one[f"{kind}Probe"]["grpc"] for kind in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} <= {port["containerPort"] for port in one["ports"]}
    assert {kind: probe["service"] for kind, probe in probes.items()} == {
        "startup": SERVICE,
        "readiness": SERVICE,
        "liveness": LIVE,
    }


@pytest.mark.parametrize("deployment", [SERVER, BALANCER, on_a_card()], ids=["server", "balancer", "card"])
def test_pods_may_do_little_and_have_time_to_end(deployment: Object) -> None:
    security, theirs = pod(deployment)["securityContext"], container(deployment)["securityContext"]
    assert security["runAsNonRoot"] and security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert theirs["readOnlyRootFilesystem"] and theirs["capabilities"] == {"drop": ["ALL"]}
    assert not theirs["allowPrivilegeEscalation"] and not pod(deployment)["automountServiceAccountToken"]
    hook = container(deployment)["lifecycle"]["preStop"]
    first = (
        hook["sleep"]["seconds"] if "sleep" in hook else int(re.findall(r"sleep (\d+)", hook["exec"]["command"][-1])[0])
    )
    grace = SETTINGS.grace if deployment["metadata"]["name"] == "latentd" else 0
    assert pod(deployment)["terminationGracePeriodSeconds"] >= first + grace + 10


def test_the_card_s_servers_run_the_card_s_image() -> None:
    (component,) = documents("kubernetes/gpu/kustomization.yaml")
    (image,) = component["images"]
    assert container(SERVER)["image"] == f"{image['name']}:cpu" and image["newTag"] == "cuda"
    limits = container(on_a_card())["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1" and container(on_a_card())["env"] == container(SERVER)["env"]


def test_what_it_scales_by_is_in_the_server_s_registry() -> None:
    scaled = the("ScaledObject", "latentd")["spec"]
    assert scaled["scaleTargetRef"] == {"name": SERVER["metadata"]["name"]} and "replicas" not in SERVER["spec"]
    assert scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] <= scaled["maxReplicaCount"]
    queries = [trigger["metadata"]["query"] for trigger in scaled["triggers"]]
    (theirs,) = INFERENCE["spec"]["predictor"]["autoScaling"]["metrics"]
    queries.append(theirs["external"]["metric"]["query"])
    known = {sample.name for family in Metrics("m").registry.collect() for sample in family.samples}
    names = {name for query in queries for name in re.findall(r"latentd_\w+", query)}
    assert names == {"latentd_queue_wait_seconds", "latentd_seats_live", "latentd_seats_capacity"} <= known
    assert all(float(trigger["metadata"]["threshold"]) > 0 for trigger in scaled["triggers"])


def test_kserve_s_model_has_its_own_name(tmp_path: Path) -> None:
    """What the runtime's shell does, with KServe's placeholder filled in: the server calls the model so."""
    spec, name = RUNTIME["spec"], INFERENCE["metadata"]["name"]
    model = INFERENCE["spec"]["predictor"]["model"]
    assert model["runtime"] == RUNTIME["metadata"]["name"] and model["protocolVersion"] in spec["protocolVersions"]
    assert model["modelFormat"]["name"] in {format["name"] for format in spec["supportedModelFormats"]}
    (tmp_path / "models").mkdir()
    (one,) = spec["containers"]
    (words,) = one["args"]
    words = words.replace("{{.Name}}", name).replace("/mnt/", f"{tmp_path}/").replace("/tmp/my", f"{tmp_path}/my")
    words = words.replace("exec latentd", "exec echo latentd")
    told = subprocess.run([*one["command"], words], capture_output=True, text=True, check=True).stdout.split()
    assert told[:2] == ["latentd", "serve"] and model_id(Path(told[2])) == name and Path(told[2]).resolve().is_dir()


def test_no_key_stands_in_the_manifests() -> None:
    assert not [thing for thing in OBJECTS if thing["kind"] == "Secret"]
    (volume,) = [one for one in pod(SERVER)["volumes"] if "secret" in one]
    assert not volume["secret"].get("optional"), "without keys no server starts"
    assert "latentd-keys" in yaml.safe_dump(volume)
