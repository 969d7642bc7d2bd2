"""Who sends a request, as far as the connection tells. Callers share the device's row evaluations."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import unquote

from pipeline.errors import InvalidRequest

LOCAL = "local"  # whoever comes over a Unix socket, which only this machine reaches


def caller_of(peer: str) -> str:
    """Name the caller behind a connection: its address without the port, which is another one each time.

    `peer` is what gRPC calls the other end: `ipv4:10.0.0.7:50412`, `ipv6:%5B::1%5D:50412` (RFC 3986 escapes) or
    `unix:path`. An IPv4 address written as an IPv6 one is the same caller. What cannot be read is one caller as it
    stands.
    """
    kind, _, rest = unquote(peer).partition(":")
    if kind == "unix":
        return LOCAL
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return peer
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def named(caller: str, callers: Iterable[str]) -> bool:
    """Return whether `callers`, addresses and networks (10.0.0.0/8) and perhaps LOCAL, name this one."""
    try:
        address = ipaddress.ip_address(caller)
    except ValueError:
        return caller in callers
    return any(address in ipaddress.ip_network(name, strict=False) for name in callers if name != LOCAL)


def read_callers(text: str) -> tuple[str, ...]:
    """Read addresses, networks and LOCAL, separated by commas. Errors: ValueError."""
    names = tuple(name for part in text.split(",") if (name := part.strip().strip("[]")))
    for name in names:
        if name != LOCAL:
            ipaddress.ip_network(name, strict=False)
    return names


def check_priority(priority: int, caller: str, callers: tuple[str, ...], most: int | None) -> None:
    """Check that a caller may ask for a priority: up to `most`, its key's, or without a key as `callers` names it.

    Errors: InvalidRequest.
    """
    if most is not None and priority > most:
        sentence = f"it must be at most {most}, which is what {caller} may ask for"
    elif most is None and priority > 0 and not named(caller, callers):
        sentence = f"it must be at most 0, as the server's setting priority_callers does not name {caller}"
    else:
        return
    raise InvalidRequest(f"priority is {priority}; {sentence}", "priority")


__all__ = ["LOCAL", "caller_of", "named", "read_callers"]
