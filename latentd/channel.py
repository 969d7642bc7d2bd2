"""Where the server is and how the channel to it is set up; the same for both clients."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re

DEFAULT_PORT = 8001
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
LARGEST_MESSAGE = 64 * 2**20  # bytes; gRPC's own 4 MiB would refuse a 2048x2048 PNG
KEEPALIVE_MS = 20_000  # notices a dead peer or a NAT that forgot the connection while a request waits

# A server that loads, drains or is gone may have a neighbour at the same address, which answers the next attempt. gRPC
# makes one only while nothing of an answer has come, so that no stream begins twice; a request changes nothing on a
# server, and one with a seed has the same pixels wherever it is made. A full server (RESOURCE_EXHAUSTED) is not asked
# again: it says itself when to. Where servers fail more than they answer, it stops trying.
_RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "latentd.v1.Images"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.5},
}

_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.service_config", json.dumps(_RETRIES)),
    ("grpc.per_rpc_retry_buffer_size", 16 * 2**20),  # a request with its pictures; what is longer is sent once
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
]


def server_address(address: str | None = None) -> str:
    """Return `host:port`: the one given, else $LATENTD_SERVER, else 127.0.0.1:8001; a host alone has port 8001.

    gRPC's own names (unix:/path, dns:///host:port) are left as they are. Raises ValueError for what is none of these.
    """
    chosen = address or os.environ.get("LATENTD_SERVER") or DEFAULT_ADDRESS
    if "://" in chosen and chosen.startswith(("http", "grpc")):
        raise ValueError(f"server address {chosen!r} is a URL; write host:port, such as {DEFAULT_ADDRESS}")
    if re.match(r"(unix|unix-abstract|vsock|ipv4|ipv6|dns|xds|passthrough):(?!\d+$)", chosen):
        return chosen
    with contextlib.suppress(ValueError):
        return f"[{ipaddress.IPv6Address(chosen)}]:{DEFAULT_PORT}"
    match = re.fullmatch(r"(\[[^\s\]]+\]|[^\s:\[\]/]+)(?::(\d+))?", chosen)
    if not match or not 0 < int(match[2] or DEFAULT_PORT) < 65536:
        raise ValueError(f"server address {chosen!r} is not host:port, such as {DEFAULT_ADDRESS}")
    return f"{match[1]}:{match[2] or DEFAULT_PORT}"


def is_local(address: str) -> bool:
    """Return whether an address, as server_address gives it, is this machine's."""
    host = address.rsplit(":", 1)[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.") or address.startswith("unix")


def channel_options(address: str) -> list[tuple[str, int | str]]:
    """Return gRPC channel options; http_proxy from the environment never stands before a server on this machine."""
    return [*_OPTIONS, ("grpc.enable_http_proxy", 0)] if is_local(address) else list(_OPTIONS)
