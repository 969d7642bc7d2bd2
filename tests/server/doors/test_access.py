"""One table, entrances x (missing, wrong, expired, revoked key; over its rate; no TLS; wrong certificate)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from engines.model import Model
from server.app import Server
from tests.support.certificates import Authority, put
from tests.support.doors import DOORS, ENTRANCES, Door, Method
from tests.support.doors import Path as HttpPath
from tests.support.keys import entry, token, write_keys
from tests.support.serving import metric, serving
from tests.support.visitor import Visitor

UNKNOWN = "the key is none that counts here: it is unknown, has expired, or was revoked"
HEALTH = {  # what probes ask, which have no key
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/Watch",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/inference.GRPCInferenceService/ModelReady",
}
OPEN = {"/", "/healthz", "/readyz"}  # the page's own files, and health
every_entrance = pytest.mark.parametrize("entrance", ENTRANCES, ids=lambda entrance: entrance.name)


@dataclass(frozen=True)
class Secured:
    """A server with keys and mutual TLS, and a visitor whom it lets in."""

    server: Server
    good: Visitor
    others: tuple[Path, Path]  # a certificate of an authority that it does not know


@pytest.fixture(scope="module")
def secured(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder, authority = tmp_path_factory.mktemp("secured"), Authority()
    ca = folder / "ca.pem"
    ca.write_bytes(authority.pem)
    entries = [entry(f"slow-{number}", rate=0.01) for number in range(len(ENTRANCES))]
    entries += [entry("good", priority=1, admin=True)]
    entries += [entry("old", expires=date(2020, 1, 1)), entry("lost", revoked=True)]
    cert, key = put(folder, "server", authority.sign())
    mine, others = put(folder, "mine", authority.sign("me")), put(folder, "others", Authority("else").sign("me"))
    settings = {"keys": write_keys(folder / "keys.yaml", *entries), "health_port": 0, "http_port": 0}
    settings |= {"admin": True, "admin_models": folder}
    with serving(model, tls_cert=cert, tls_key=key, tls_client_ca=ca, **settings) as server:
        yield Secured(server, Visitor(token("good"), ca, mine), others)


def asked(entrance: Door, secured: Secured, visitor: Visitor) -> tuple[str, str]:
    outcome = entrance.ask(
        secured.server, visitor=visitor, **({"prompt": "a", "steps": 1} if entrance in DOORS else {})
    )
    return outcome.code, outcome.message


@every_entrance
def test_a_key_opens(entrance: Door, secured: Secured) -> None:
    assert asked(entrance, secured, secured.good)[0] == "OK"


@every_entrance
def test_a_missing_key(entrance: Door, secured: Secured) -> None:
    code, message = asked(entrance, secured, replace(secured.good, key=None))
    assert code == "UNAUTHENTICATED" and "this server takes calls with a key alone" in message


@pytest.mark.parametrize("name", ["unknown", "chosen", "old", "lost"])
@every_entrance
def test_a_wrong_key(entrance: Door, secured: Secured, name: str) -> None:
    """Wrong, expired and revoked hear the same."""
    key = "sk-anything" if name == "chosen" else token(name)
    refused = metric(secured.server, "calls_refused_total", why="key")
    code, message = asked(entrance, secured, replace(secured.good, key=key))
    assert code == "UNAUTHENTICATED" and UNKNOWN in message and key not in message
    assert metric(secured.server, "calls_refused_total", why="key") == refused + 1


@every_entrance
def test_a_key_over_its_rate(entrance: Door, secured: Secured) -> None:
    name = f"slow-{ENTRANCES.index(entrance)}"
    visitor = replace(secured.good, key=token(name))
    asyncio.run(secured.server.gate.policy.caller([f"Bearer {visitor.key}"], "here"))  # the one that it has in hours
    fields = {"prompt": "a", "steps": 1} if entrance in DOORS else {}
    outcome = entrance.ask(secured.server, visitor=visitor, **fields)
    assert outcome.code == "RESOURCE_EXHAUSTED" and not outcome.pictures
    assert f"key:{name} asks more often than 0.01 times a minute" in outcome.message
    assert outcome.retry_after == pytest.approx(6000, abs=100)


@every_entrance
def test_plaintext_on_a_port_of_tls(entrance: Door, secured: Secured) -> None:
    assert asked(entrance, secured, Visitor(secured.good.key))[0] == "UNAVAILABLE"


@pytest.mark.parametrize("certificate", ["none", "another authority's"])
@every_entrance
def test_a_wrong_client_certificate(entrance: Door, secured: Secured, certificate: str) -> None:
    visitor = replace(secured.good, certificate=None if certificate == "none" else secured.others)
    assert asked(entrance, secured, visitor)[0] == "UNAVAILABLE"


def methods(secured: Secured) -> list[str]:
    """The paths of all methods that the gRPC port has, as reflection tells."""
    with secured.good.channel(secured.server) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asking = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        (answer,) = stub.ServerReflectionInfo(asking, metadata=secured.good.metadata())
        names = [service.name for service in answer.list_services_response.service]
    pool = descriptor_pool.Default()
    return [f"/{name}/{method.name}" for name in names for method in pool.FindServiceByName(name).methods]


def routes(server: Server) -> list[str]:
    """The paths of all routes that the HTTP port has."""
    app = server._http._app
    assert app is not None
    rooms: list[Any] = [getattr(route, "original_router", None) for route in app.result().routes]  # type: ignore[attr-defined]
    found = [route for route in app.result().routes if hasattr(route, "path")]  # type: ignore[attr-defined]
    found += [route for room in rooms if room is not None for route in room.routes]
    return [route.path for route in found]


def test_no_method_is_forgotten(secured: Secured) -> None:
    paths = methods(secured)
    assert len(paths) > 15 and set(paths) >= HEALTH
    listed = {door.path.split("/")[1] for door in ENTRANCES if isinstance(door, Method)} | {"grpc.health.v1.Health"}
    assert {path.split("/")[1] for path in paths} == listed, "each service has a row of the table"
    nobody = replace(secured.good, key=None)
    for path in paths:
        if path.endswith("/Watch"):  # which does not end
            with nobody.channel(secured.server) as channel:
                watching = channel.unary_stream(path)(b"", timeout=30)
                assert next(watching) == b"\x08\x01", "SERVING"
                watching.cancel()
            continue
        code = Method("", "", path=path).ask(secured.server, visitor=nobody).code
        assert path in HEALTH or code in ("UNAUTHENTICATED", "UNIMPLEMENTED"), path
        assert path not in HEALTH or code in ("OK", "NOT_FOUND"), path


def test_no_path_is_forgotten(secured: Secured) -> None:
    paths, nobody = routes(secured.server), replace(secured.good, key=None)
    assert len(paths) > 30 and set(paths) >= OPEN
    prefixes = {"/v1/", "/sdapi/", "/api/", "/openapi.json"}
    assert {next((each for each in prefixes if path.startswith(each)), path) for path in paths} == {
        *(prefixes | OPEN),
        "/static",
    }, "what begins otherwise is another door: it takes a row in ENTRANCES"
    for path in [*(re.sub(r"\{.*?\}", "x", path) for path in paths), "/nothing", "/static", "//", "/healthz/", "/docs"]:
        code = HttpPath("", "", path=path).ask(secured.server, visitor=nobody).code
        assert code == ("OK" if path in OPEN else "UNAUTHENTICATED"), path
    assert HttpPath("", "", path="/static/main.js").ask(secured.server, visitor=nobody).code == "OK"
    assert HttpPath("", "", path="/static/../api/model").ask(secured.server, visitor=nobody).code == "NOT_FOUND"


def test_health_has_a_port_of_its_own_without_tls_and_keys(secured: Secured) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{secured.server.health_port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/latentd.v1.Images/ListModels")(b"", timeout=30)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
