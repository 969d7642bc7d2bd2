"""Where a door listens: host and port as one text, and whether somebody is there already."""

from __future__ import annotations

import errno
import socket

from pipeline.errors import LatentdError

ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def joined(host: str, port: int) -> str:
    """Return host:port as one text, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def refuse_taken(door: str, host: str, port: int) -> None:
    """Refuse a port that is taken. `door` names the port's flag: "grpc".

    Errors: LatentdError when `port` cannot be bound on one of the addresses of `host`.

    gRPC itself is content with one of a name's addresses (localhost has two), and complains in its own log.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise LatentdError(f"host {host!r} is no address: {error}; choose another with --host") from None
    bound, refused = 0, None
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not count
                probe.bind(address)
                bound += 1
        except OSError as error:
            refused = error
            if error.errno not in ABSENT:
                break
    if refused and (refused.errno not in ABSENT or not bound):
        raise LatentdError(
            f"{door} port {joined(host, port)} cannot be opened: {refused.strerror}; is another latentd running? "
            f"Choose another with --{door}-port"
        )
