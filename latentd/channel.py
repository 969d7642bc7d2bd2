"""Where the server is and how the channel to it is set up; the same for both clients."""

from __future__ import annotations

import os

DEFAULT_ADDRESS = "127.0.0.1:8001"
LARGEST_MESSAGE = 64 * 2**20  # bytes; gRPC's own 4 MiB would refuse a 2048x2048 PNG
KEEPALIVE_MS = 20_000  # notices a dead peer or a NAT that forgot the connection while a request waits

_OPTIONS = [
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 10_000),
]


def server_address(address: str | None = None) -> str:
    """`host:port`: the one given, else $LATENTD_SERVER, else 127.0.0.1:8001. Raises ValueError for a URL."""
    chosen = address or os.environ.get("LATENTD_SERVER") or DEFAULT_ADDRESS
    if "://" in chosen and chosen.startswith(("http", "grpc")):
        raise ValueError(f"server address {chosen!r} is a URL; write host:port, such as {DEFAULT_ADDRESS}")
    return chosen


def channel_options(address: str) -> list[tuple[str, int]]:
    """gRPC channel options; http_proxy from the environment never stands before a server on this machine."""
    host = address.rsplit(":", 1)[0].strip("[]")
    local = host in ("localhost", "::1") or host.startswith("127.")
    return [*_OPTIONS, ("grpc.enable_http_proxy", 0)] if local else list(_OPTIONS)
