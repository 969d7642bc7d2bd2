"""What every item of the attack needs: a server of one clone or the other, its gauges, and requests to it."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.serving import ROOT, server_process
from latentd.v1 import images_pb2 as pb
from latentd.v1.images_pb2_grpc import ImagesStub

PATIENCE = 60.0  # seconds: of waits that end by themselves
_numbers = itertools.count()


@dataclass(frozen=True)
class Figure:
    """Holds one figure of an item."""

    what: str
    unit: str
    value: float


@dataclass(frozen=True)
class Trial:
    """Holds a server process under attack."""

    address: str
    metrics: str
    pid: int

    def gauge(self, name: str) -> float | None:
        """Return a gauge or counter without labels of its own; None where the server has none of that name."""
        with urllib.request.urlopen(self.metrics, timeout=10) as page:
            text = page.read().decode()
        match = re.search(rf'^latentd_{name}\{{model="[^"]*"\}} (\S+)$', text, re.M)
        return float(match[1]) if match else None

    def idle(self) -> bool:
        """Return whether nobody waits for a seat and nobody sits."""
        return self.gauge("queue_depth") == 0 and self.gauge("rows_live") == 0

    def one(self, seconds: float | None = None, **fields: Any) -> tuple[str, str, float]:
        """Send a request of another prompt, wait for its end; returns its code, its sentence, and its seconds."""
        start = time.monotonic()
        with grpc.insecure_channel(self.address) as channel:
            try:
                stub = ImagesStub(channel)
                for _ in stub.Generate(request(**fields), timeout=seconds):  # pyright: ignore
                    pass
            except grpc.RpcError as error:
                assert isinstance(error, grpc.Call)
                return error.code().name, error.details() or "", time.monotonic() - start
        return "OK", "", time.monotonic() - start


def request(**fields: Any) -> pb.GenerateRequest:
    """Make a request whose prompt nobody has encoded yet."""
    number = next(_numbers)
    return pb.GenerateRequest(prompt=f"red apple number {number}, color style", seed=number, **fields)


@contextlib.contextmanager
def trial(folder: Path, *flags: str, before: tuple[str, ...] = ()) -> Iterator[Trial]:
    """Start a server of the clone at `folder` with the demo model; it is warm when the block begins."""
    model = ROOT / "demo" / "small-things"
    with server_process(model, folder=folder, words=("server",), flags=flags, before=before) as (line, _, pid):
        address, metrics = re.findall(r"gRPC (\S+), metrics (\S+)", line)[0]
        started = Trial(address, metrics, pid)
        for _ in range(3):
            started.one(steps=4)
        yield started


def until(what: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Wait until something is so; returns whether it came to that in time."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
