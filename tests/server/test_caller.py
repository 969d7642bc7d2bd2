"""A caller is an address without its port."""

from __future__ import annotations

import pytest

from server.caller import LOCAL, caller_of


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
