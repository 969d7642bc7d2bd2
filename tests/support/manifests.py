"""What is in deploy/ for Kubernetes, and the schemas that it must satisfy.

Kubernetes' own objects: the schemas of its API, from the package kubernetes-validate, strictly, so that a misspelt
field fails. KEDA's and KServe's: the fields that we use, written down below from KEDA's CRD (2.16) and the models of
KServe's SDK (0.21.0); what they take over from Kubernetes is checked by its schemas.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from referencing import Registry, Resource

from server.settings import read_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
VERSIONS = ("1.30", "1.37")  # the first whose `sleep` is on by default, and the newest that the package has
Object = dict[str, Any]

_DEFINITIONS = "https://kubernetes.io/api/_definitions.json"


def documents(path: str) -> list[Object]:
    """The objects of a file below deploy/."""
    return list(yaml.safe_load_all((DEPLOY / path).read_text()))


BASE = ["server.yaml", "balancer.yaml", "network.yaml", "scaling.yaml"]
OBJECTS = [thing for name in BASE for thing in documents(f"kubernetes/{name}")]
(RUNTIME,), (INFERENCE,) = documents("kserve/servingruntime.yaml"), documents("kserve/inferenceservice.yaml")
SETTINGS = read_settings(["--config", str(DEPLOY / "kubernetes/latentd.yaml")], {})


def the(kind: str, name: str) -> Object:
    (found,) = [thing for thing in OBJECTS if (thing["kind"], thing["metadata"]["name"]) == (kind, name)]
    return found


SERVER, BALANCER = the("Deployment", "latentd"), the("Deployment", "latentd-balancer")


def pod(deployment: Object) -> Object:
    return deployment["spec"]["template"]["spec"]


def container(deployment: Object) -> Object:
    (one,) = pod(deployment)["containers"]
    return one


def _theirs(name: str) -> Object:
    """A part as Kubernetes defines it."""
    return {"$ref": f"{_DEFINITIONS}#/$defs/io.k8s.{name}"}


def _fields(*needed: str, **fields: Any) -> Object:
    """An object with these fields and no others."""
    return {"type": "object", "additionalProperties": False, "required": list(needed), "properties": fields}


_TEXT, _NUMBER, _YES = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}


def _many(of: Object) -> Object:
    return {"type": "array", "items": of, "minItems": 1}


def _resource(spec: Object) -> Object:
    meta = _theirs("apimachinery.pkg.apis.meta.v1.ObjectMeta")
    return _fields("apiVersion", "kind", "metadata", "spec", apiVersion=_TEXT, kind=_TEXT, metadata=meta, spec=spec)


_BEHAVIOUR = _theirs("api.autoscaling.v2.HorizontalPodAutoscalerBehavior")
_CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"): _fields(
        "scaleTargetRef",
        "triggers",
        scaleTargetRef=_fields("name", name=_TEXT, apiVersion=_TEXT, kind=_TEXT),
        minReplicaCount=_NUMBER,
        maxReplicaCount=_NUMBER,
        pollingInterval=_NUMBER,
        fallback=_fields("failureThreshold", "replicas", failureThreshold=_NUMBER, replicas=_NUMBER),
        advanced=_fields(horizontalPodAutoscalerConfig=_fields(behavior=_BEHAVIOUR, name=_TEXT)),
        triggers=_many(
            _fields(
                "type",
                "metadata",
                type={"const": "prometheus"},
                name=_TEXT,
                metricType={"enum": ["AverageValue", "Value"]},
                # KEDA reads all of it as text.
                metadata=_fields(
                    "serverAddress", "query", "threshold", serverAddress=_TEXT, query=_TEXT, threshold=_TEXT
                ),
            )
        ),
    ),
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): _fields(
        "containers",
        "supportedModelFormats",
        annotations={"type": "object", "additionalProperties": _TEXT},
        supportedModelFormats=_many(_fields("name", name=_TEXT, version=_TEXT, autoSelect=_YES, priority=_NUMBER)),
        protocolVersions=_many({"enum": ["v1", "v2", "grpc-v1", "grpc-v2"]}),
        multiModel=_YES,
        containers=_many(_theirs("api.core.v1.Container")),
        volumes=_many(_theirs("api.core.v1.Volume")),
    ),
    ("serving.kserve.io/v1beta1", "InferenceService"): _fields(
        "predictor",
        predictor=_fields(
            "model",
            minReplicas=_NUMBER,
            maxReplicas=_NUMBER,
            timeout=_NUMBER,
            terminationGracePeriodSeconds=_NUMBER,
            autoScaling=_fields(
                "metrics",
                metrics=_many(
                    _fields(
                        "type",
                        type={"const": "External"},
                        external=_fields(
                            "metric",
                            "target",
                            metric=_fields("query", backend={"const": "prometheus"}, serverAddress=_TEXT, query=_TEXT),
                            target=_fields(
                                "type", type={"enum": ["Value", "AverageValue"]}, averageValue=_TEXT, value=_TEXT
                            ),
                        ),
                    )
                ),
            ),
            model=_fields(
                "modelFormat",
                runtime=_TEXT,
                modelFormat=_fields("name", name=_TEXT, version=_TEXT),
                protocolVersion={"enum": ["v1", "v2", "grpc-v2"]},
                storageUri=_TEXT,
            ),
        ),
    ),
}


def check(thing: Object, version: str) -> None:
    """Compare an object with its schema in a version of Kubernetes. Errors: jsonschema's, the package's."""
    spec = _CUSTOM.get((thing["apiVersion"], thing["kind"]))
    if spec is None:
        kubernetes_validate.validate(thing, version, strict=True)
        return
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    theirs = Resource.from_contents(json.loads((folder / "_definitions.json").read_text()))
    jsonschema.Draft202012Validator(_resource(spec), registry=theirs @ Registry()).validate(thing)


def merged(base: Any, patch: Any) -> Any:
    """A strategic merge as far as ours goes: objects by key, lists of named things by name, else the patch."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {**base, **{key: merged(base.get(key), value) for key, value in patch.items()}}
    if isinstance(base, list) and all("name" in one for one in (*base, *patch)):
        names = {one["name"]: one for one in base}
        return list({**names, **{one["name"]: merged(names.get(one["name"]), one) for one in patch}}.values())
    return patch
