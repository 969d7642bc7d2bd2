"""How the clients show a key, and speak TLS; what they say where a server and they do not understand each other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engines.model import Model
from latentd import AsyncClient, Client, ServerError
from latentd.__main__ import main
from latentd.access import shown
from latentd.options import parse
from latentd.swap import _print_state
from latentd.swap import run as swap
from latentd.v1 import admin_pb2 as pb
from server.app import Server
from tests.support.certificates import Authority, put
from tests.support.keys import entry, token, write_keys
from tests.support.serving import address, serving


@dataclass
class Secured:
    server: Server
    folder: Path
    access: dict[str, Any]


@pytest.fixture(scope="module")
def secured(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A server with keys and mutual TLS, and what lets a client in."""
    folder, authority = tmp_path_factory.mktemp("access"), Authority()
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "other.pem").write_bytes(Authority().pem)
    (folder / "key").write_text(token("a") + "\n")
    cert, key = put(folder, "server", authority.sign())
    mine = put(folder, "mine", authority.sign("me"))
    keys, ca = write_keys(folder / "keys.yaml", entry("a")), folder / "ca.pem"
    with serving(model, keys=keys, tls_cert=cert, tls_key=key, tls_client_ca=ca) as server:
        own = dict(zip(("tls_client_cert", "tls_client_key"), map(str, mine), strict=True))
        yield Secured(server, folder, {"key": token("a"), "tls_ca": str(ca), **own})


def test_both_clients_are_let_in(secured: Secured) -> None:
    with Client(address(secured.server), **secured.access) as client:
        assert client.generate("a cat", steps=1) and client.models()

    async def ask() -> None:
        async with AsyncClient(address(secured.server), **secured.access) as client:
            assert await client.generate("a cat", steps=1) and await client.models()

    asyncio.run(ask())


def test_the_environment_says_it_to_clients_and_the_command_line(
    secured: Secured, monkeypatch, tmp_path: Path, capsys
) -> None:
    for name, value in {**secured.access, "key": f"@{secured.folder / 'key'}"}.items():
        monkeypatch.setenv(f"LATENTD_{name.upper()}", value)
    monkeypatch.setenv("LATENTD_SERVER", address(secured.server))
    with Client() as client:
        assert client.models()
    assert main(["a cat", "--steps", "1", "-o", str(tmp_path / "cat.png")]) == 0, capsys.readouterr().err
    assert main(["--list-models", "--key", "wrong"]) == 1
    assert "the key is none that counts here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tls_ca": "other.pem"}, "no TLS with .*: the server's certificate is none that tls_ca, or"),
        ({"tls_ca": None, "tls_client_cert": None, "tls_client_key": None}, "closes the connection: it may want TLS"),
        ({"tls_client_cert": None, "tls_client_key": None}, "closes the connection: .* or a client's certificate"),
    ],
)
def test_what_is_said_where_tls_is_not_as_it_should_be(secured: Secured, change: dict[str, Any], told: str) -> None:
    change = {name: value and str(secured.folder / value) for name, value in change.items()}
    client = Client(address(secured.server), **{**secured.access, **change})
    with client, pytest.raises(ServerError, match=told) as refused:
        client.models()
    assert refused.value.code.name == "UNAVAILABLE"


def test_tls_with_a_server_that_has_none(model: Model, secured: Secured) -> None:
    told = "no TLS with .*: the server does not encrypt there"
    with serving(model) as server:
        client = Client(address(server), tls_ca=secured.access["tls_ca"])
        with client, pytest.raises(ServerError, match=told):
            client.models()


def test_who_shows_no_key_is_told_where_to_put_one(secured: Secured) -> None:
    without = {name: value for name, value in secured.access.items() if name != "key"}
    client = Client(address(secured.server), **without)
    words = "this server takes calls with a key alone; give one as key, or in LATENTD_KEY"
    with client, pytest.raises(ServerError, match=words):
        client.models()


def test_a_server_that_swaps_nothing_is_told_from_a_stranger(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(model) as server:
        assert swap(["--server", address(server)], "latentd swap") == 1
    assert "swaps no models: it was started without --admin on" in capsys.readouterr().err


def test_a_certificate_for_another_name(model: Model, secured: Secured, tmp_path: Path) -> None:
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    cert, key = put(tmp_path, "server", authority.sign("gpu.example.org"))
    with serving(model, tls_cert=cert, tls_key=key) as server:
        client = Client(f"localhost:{server.grpc_port}", tls_ca=tmp_path / "ca.pem")
        with client, pytest.raises(ServerError, match="no TLS with .*: the server's certificate is for another name"):
            client.models()


@pytest.mark.parametrize(
    ("access", "told"),
    [
        ({"key": "two words"}, "key is no key"),
        ({"key": "latentd_\n"}, "key is no key"),
        ({"key": "schl\u00fcssel"}, "key is no key"),
        ({"key": "@/nowhere/key"}, "key: cannot read /nowhere/key: No such file"),
        ({"tls_ca": "/nowhere/ca"}, "tls_ca: cannot read /nowhere/ca"),
        ({"tls_client_cert": __file__}, "tls_client_key is missing"),
        ({"tls_client_key": __file__}, "tls_client_cert is missing"),
    ],
)
def test_what_cannot_be_shown_is_a_value_error(access: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Client(**access)


def test_nothing_is_shown_unless_said(tmp_path: Path) -> None:
    assert shown({}) == (None, ())
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="key is no key"):
        shown({"key": f"@{tmp_path / 'empty'}"})
    assert shown({"key": "a"}).metadata == (("authorization", "Bearer a"),) and shown({"tls": True}).channel


def test_tls_can_be_left_off_though_the_environment_names_an_authority(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTD_TLS_CA", str(secured.folder / "ca.pem"))
    assert shown({}).channel is not None and shown({"tls": False}).channel is None
    monkeypatch.setenv("LATENTD_TLS", "off")
    assert shown({}).channel is None and shown({"tls": True}).channel is not None
    monkeypatch.delenv("LATENTD_TLS")
    assert parse(["--no-tls", "x"], {}).tls is False and parse(["x"], {}).tls is None


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (pb.SwapStage(stage=pb.STAGE_LOADING), "loading"),
        (pb.SwapStage(stage=pb.STAGE_DRAINING, left=3), "serving; requests of the model before that are left: 3"),
        (pb.SwapStage(stage=99), "stage 99"),  # type: ignore[arg-type]
    ],
    ids=["loading", "draining", "of a newer server"],
)
def test_a_swap_under_way_is_told_in_words(stage: pb.SwapStage, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    _print_state(pb.StateResponse(model="a", swapping_to="b", stage=stage))
    assert capsys.readouterr().out.splitlines()[1] == f"a swap to b is under way: {words}"
