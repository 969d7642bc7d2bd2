"""How long health is silent while a server loads: the longest gap between two of its answers."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_EVERY = 0.005  # seconds between two questions


def longest_gap(model: Path, environment: Mapping[str, str], clone: Path) -> float:
    """Start a server of `model`, ask its health again and again until it says SERVING, and end it.

    Returns milliseconds, counted from the first answer: before it Python imports, and nothing listens.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "latentd", "serve", str(model), "--grpc-port", str(port), "--metrics-port", "0"]
    with (
        subprocess.Popen(
            command,
            cwd=clone,
            env={**environment, "LATENTD_HTTP_PORT": "off"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process,
        grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.initial_reconnect_backoff_ms", 20)]) as channel,
    ):
        try:
            health: Any = health_pb2_grpc.HealthStub(channel)
            last = longest = 0.0
            while process.poll() is None:
                answer = None
                with contextlib.suppress(grpc.RpcError):
                    answer = health.Check(health_pb2.HealthCheckRequest(), timeout=30)
                now = time.monotonic()
                if answer is not None:
                    longest = max(longest, now - last) if last else 0.0
                    last = now
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return 1e3 * longest
                time.sleep(_EVERY)
            raise SystemExit(f"the server did not start: {' '.join(command)}")
        finally:
            process.terminate()
