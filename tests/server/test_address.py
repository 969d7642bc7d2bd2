from __future__ import annotations

import socket

import pytest

from pipeline.errors import LatentdError
from server.address import joined, refuse_taken


@pytest.fixture
def taken() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_an_ipv6_host_stands_in_brackets() -> None:
    assert joined("127.0.0.1", 8001) == "127.0.0.1:8001"
    assert joined("localhost", 8001) == "localhost:8001"
    assert joined("::1", 8001) == "[::1]:8001"


# gRPC alone would take the other of localhost's two addresses and leave this one to the other server.
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_in_use_is_one_sentence(host: str, taken: int) -> None:
    with pytest.raises(LatentdError) as refused:
        refuse_taken("metrics", host, taken)
    assert str(refused.value) == (
        f"metrics port {host}:{taken} cannot be opened: Address already in use; is another latentd running? "
        "Choose another with --metrics-port"
    )


def test_one_address_in_use_is_enough(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, taken)) for host in ("127.0.0.1", "192.0.2.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(LatentdError, match="Address already in use"):
        refuse_taken("grpc", "two.example", taken)


def test_one_address_that_this_machine_lacks_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """localhost has an IPv6 address by name even where the machine has none."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, 0)) for host in ("192.0.2.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    refuse_taken("grpc", "two.example", 0)


def test_a_free_port_is_left_free() -> None:
    refuse_taken("grpc", "127.0.0.1", 0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    refuse_taken("grpc", "127.0.0.1", port)
    refuse_taken("grpc", "127.0.0.1", port)


@pytest.mark.parametrize("host", ["not a host", "a" * 300])
def test_a_host_that_is_none_is_named(host: str) -> None:
    with pytest.raises(LatentdError, match=rf"host '{host}' is no address: .*--host"):
        refuse_taken("grpc", host, 0)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(LatentdError, match=r"grpc port 192.0.2.1:0 cannot be opened: Cannot assign requested address"):
        refuse_taken("grpc", "192.0.2.1", 0)  # RFC 5737: nobody's
