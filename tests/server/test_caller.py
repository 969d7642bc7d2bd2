"""A caller is an address without its port."""

from __future__ import annotations

import pytest

from server.caller import LOCAL, caller_of, named, read_callers


@pytest.mark.parametrize(
    ("peer", "caller"),
    [
        ("ipv4:127.0.0.1:50412", "127.0.0.1"),
        ("ipv4:127.0.0.1:50413", "127.0.0.1"),
        ("ipv6:%5B::1%5D:50412", "::1"),
        ("ipv6:[::1]:50412", "::1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50412", "fe80::1"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:50412", "10.0.0.7"),
        ("unix:/run/latentd.sock", LOCAL),
        ("unix:", LOCAL),
        ("something else", "something else"),
        ("", ""),
    ],
)
def test_a_caller(peer, caller):
    assert caller_of(peer) == caller


@pytest.mark.parametrize(
    ("caller", "callers", "is_named"),
    [
        ("10.0.0.7", "10.0.0.7", True),
        ("10.0.0.7", "10.0.0.0/8", True),
        ("10.0.0.7", "10.0.0.1/8", True),
        ("10.0.0.7", "::/0", False),
        ("::1", "10.0.0.7, [::1]", True),
        ("fd00::5", "fd00::/8", True),
        (LOCAL, "local,::1", True),
        (LOCAL, "::/0,0.0.0.0/0", False),
        ("10.0.0.7", "local", False),
        ("something else", "0.0.0.0/0", False),
        ("10.0.0.7", "", False),
    ],
)
def test_who_is_named(caller: str, callers: str, is_named: bool) -> None:
    assert named(caller, read_callers(callers)) is is_named


@pytest.mark.parametrize("text", ["10.0.0", "example.org", "10.0.0.0/33", "::1;::2"])
def test_what_names_nobody(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        read_callers(text)
