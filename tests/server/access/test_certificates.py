"""Certificates: what is read of them, when it counts, and that no request notices a change."""

from __future__ import annotations

import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from engines.model import Model
from latentd import Client
from server.access.certificates import CertificateError, Certificates
from server.app import Server
from tests.support.certificates import Authority, Signed, put
from tests.support.doors import DOORS, Door
from tests.support.held import eventually
from tests.support.patience import PATIENCE
from tests.support.serving import address, serving
from tests.support.visitor import Visitor


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def ca(authority: Authority, tmp_path: Path) -> Path:
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    return tmp_path / "ca.pem"


def encrypted(signed: Signed) -> bytes:
    key = load_pem_private_key(signed.key, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda pair, other: pair._replace(key=other.key), "key values mismatch"),
        (lambda pair, other: pair._replace(key=b""), "they cannot be read"),
        (lambda pair, other: pair._replace(key=pair.key[:80]), "they cannot be read"),
        (lambda pair, other: pair._replace(certificate=b""), "no certificate in PEM with its key"),
        (lambda pair, other: pair._replace(certificate=b"\xff\xfe"), "no certificate in PEM with its key"),
        (lambda pair, other: pair._replace(key=encrypted(pair)), "no certificate in PEM with its key, unencrypted"),
        (lambda pair, other: pair._replace(key=b" " * (1 << 20) + pair.key), "has more than 1048576 bytes"),
    ],
)
def test_a_pair_that_does_not_fit_starts_nothing_and_changes_nothing(
    spoil: Callable[[Signed, Signed], Signed], told: str, authority: Authority, tmp_path: Path, caplog
) -> None:
    good, other = authority.sign(), authority.sign()
    with pytest.raises(CertificateError) as refused:
        Certificates(*put(tmp_path, "bad", spoil(good, other)))
    assert told in str(refused.value) and "bad.key" in str(refused.value)
    certificates = Certificates(*put(tmp_path, "pair", good))
    put(tmp_path, "pair", spoil(good, other))
    for _ in range(3):
        assert certificates.current().certificate == good.certificate and certificates.stale
    said = [record.levelname for record in caplog.records if record.name == "latentd.access"]
    assert said == ["ERROR"], "once; threads that other tests have left may log too"
    put(tmp_path, "pair", other)
    assert certificates.current().certificate == other.certificate and not certificates.stale


def test_what_is_no_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    pair = put(tmp_path, "pair", authority.sign())
    for data in (b"", b"nothing", b"\xff"):
        (tmp_path / "ca.pem").write_bytes(data)
        with pytest.raises(CertificateError, match="and an authority"):
            Certificates(*pair, tmp_path / "ca.pem")
    (tmp_path / "ca.pem").write_bytes("# Autorité de Düsseldorf\n".encode() + authority.pem)
    assert Certificates(*pair, tmp_path / "ca.pem").mutual
    with pytest.raises(CertificateError, match="tls_client_ca: .* cannot be read: No such file"):
        Certificates(*pair, tmp_path / "none.pem")


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


def shown(visitor: Visitor, port: int | None) -> int:
    """The serial number of the certificate that a port shows now."""
    assert visitor.ca and port
    context = ssl.create_default_context(cafile=str(visitor.ca))
    raw = socket.create_connection(("127.0.0.1", port), PATIENCE)
    with context.wrap_socket(raw, server_hostname="localhost") as connection:
        certificate = connection.getpeercert(binary_form=True)
        assert certificate
        return x509.load_der_x509_certificate(certificate).serial_number


@pytest.mark.parametrize("times", [4, pytest.param(100, marks=pytest.mark.exhaustive)])
def test_certificates_change_under_load_and_no_request_fails(
    times: int, model: Model, authority: Authority, ca: Path, tmp_path: Path
) -> None:
    """Every port, on new connections and on those that stay; the two files change one after the other."""
    cert, key = put(tmp_path, "server", authority.sign())
    visitor = Visitor(ca=ca)
    asked: Counter[str] = Counter()
    failures: list[str] = []
    over = threading.Event()

    def load(name: str, ask: Callable[[], object]) -> None:
        while not over.is_set():
            try:
                ask()
                asked[name] += 1
            except Exception as error:
                failures.append(f"{name}: {error!r}")

    def through(door: Door, server: Server) -> None:
        outcome = door.ask(server, visitor=visitor, prompt="a", steps=1)
        assert outcome.code == "OK" and len(outcome.pictures) == 1, outcome

    with serving(model, tls_cert=cert, tls_key=key, http_port=0) as server:
        doors = {door.name: door for door in DOORS}
        with Client(address(server), tls_ca=ca) as client:
            loads = {
                "grpc, one connection": lambda: client.generate("a", steps=1),
                "grpc": lambda: through(doors["grpc"], server),
                "http": lambda: through(doors["openai"], server),
            }
            threads = [threading.Thread(target=load, args=each) for each in loads.items()]
            for thread in threads:
                thread.start()
            try:
                for _ in range(times):
                    before, signed = dict(asked), authority.sign()
                    put(tmp_path, "server", signed)
                    for port in (server.grpc_port, server.http_port, server.metrics_port):
                        eventually(lambda port=port: shown(visitor, port), serial(signed.certificate))
                    eventually(lambda before=before: all(asked[name] > before.get(name, 0) for name in loads), True)
            finally:
                over.set()
                for thread in threads:
                    thread.join()
    print(f"{times} changes, {dict(asked)} requests, {len(failures)} failed")
    assert failures == [] and all(asked[name] >= times for name in loads)


def windows(pem: bytes) -> bytes:
    """With a comment, and lines as Windows ends them."""
    return "# déjà vu\n".encode() + pem.replace(b"\n", b"\r\n")


def test_a_chain_is_shown_whole_and_files_are_as_tools_write_them(
    model: Model, authority: Authority, ca: Path, tmp_path: Path
) -> None:
    """Who trusts the root alone is let in by the one between; so are clients, whose authority is the root."""
    between = authority.below("between")
    server_s, mine = between.sign(), between.sign("me")
    chain = server_s._replace(certificate=windows(server_s.certificate + between.pem), key=windows(server_s.key))
    cert, key = put(tmp_path, "server", chain)
    pair = put(tmp_path, "mine", mine._replace(certificate=mine.certificate + between.pem))
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(windows(Authority("another").pem + authority.pem))
    visitor = Visitor(ca=ca, certificate=pair)
    with serving(model, tls_cert=cert, tls_key=key, tls_client_ca=bundle, http_port=0) as server:
        for door in (DOORS[0], DOORS[-1]):
            assert door.ask(server, visitor=visitor, prompt="a", steps=1).code == "OK", door.name
        put(tmp_path, "server", server_s)
        for door in (DOORS[0], DOORS[-1]):
            assert door.ask(server, visitor=visitor, prompt="a", steps=1).code == "UNAVAILABLE", (
                "its chain is not there"
            )


def test_an_authority_that_changes_counts_for_the_next_connection(
    model: Model, authority: Authority, ca: Path, tmp_path: Path
) -> None:
    cert, key = put(tmp_path, "server", authority.sign())
    clients = {name: Authority(name) for name in ("first", "second")}
    mine = {name: put(tmp_path, name, each.sign("me")) for name, each in clients.items()}
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(clients["first"].pem)

    def let_in(server: Server, name: str) -> list[bool]:
        visitor = replace(Visitor(ca=ca), certificate=mine[name])
        return [door.ask(server, visitor=visitor, prompt="a", steps=1).code == "OK" for door in (DOORS[0], DOORS[-1])]

    with serving(model, tls_cert=cert, tls_key=key, tls_client_ca=trusted, http_port=0) as server:
        assert let_in(server, "first") == [True, True] and let_in(server, "second") == [False, False]
        trusted.write_bytes(clients["second"].pem)
        assert let_in(server, "first") == [False, False] and let_in(server, "second") == [True, True]
