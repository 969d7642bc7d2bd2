"""File descriptors: how many there are, and what is said when they get scarce."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

from engines.model import Model
from latentd import Client, ServerError
from server import descriptors
from server.descriptors import Descriptors, connections, reserve
from tests.support import wire
from tests.support.serving import address, serving

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("limit", [16, 64, 256, 1024, 65_536])
def test_connections_and_the_reserve_fit_into_the_limit(limit: int) -> None:
    calls, scrapers = connections(limit)
    assert calls > scrapers > 0 and (limit < 64 or calls + scrapers + reserve(limit) < limit)


COUNTED = """
import os
from server.descriptors import count
before = count()
file = os.open(os.devnull, os.O_RDONLY)
print(before, count())
"""


def test_they_are_counted() -> None:
    """In a process of its own: in this one an earlier test's thread may close one meanwhile."""
    ran = subprocess.run([sys.executable, "-c", COUNTED], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, ran.stdout.split())
    assert before >= 3 and after == before + 1


RAISED = """
import resource, sys
from server.descriptors import raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard", "after"), [(40, 60, 60), (50, 50, 50)])
def test_the_soft_limit_is_raised(soft: int, hard: int, after: int) -> None:
    command = [sys.executable, "-c", RAISED, str(soft), str(hard)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(after), str(after), str(hard)]


def test_scarcity_is_told_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    here, told = [0], []
    looking = Descriptors(100, told.append, lambda: here[0])
    for here[0] in (75, 76, 90, 74, 51, 50, 60):  # 25 are kept, and 50 free are enough again
        looking.look()
    assert told == ["24 of 100 file descriptors are free, and 25 are kept; ask again later", None]
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_where_not_even_counting_is_possible_none_is_free() -> None:
    def fail() -> int:
        raise OSError("too many open files")

    told: list[str | None] = []
    Descriptors(100, told.append, fail).look()
    assert told and told[0] and told[0].startswith("0 of 100")


def test_calls_are_refused_and_health_says_so_until_it_is_over(model: Model) -> None:
    def health() -> int:
        (answer,) = wire.send(address(server), wire.CHECK, b"")
        return health_pb2.HealthCheckResponse.FromString(answer).status

    def scarce() -> float | None:
        return server.metrics.registry.get_sample_value("latentd_descriptors_scarce", {"model": model.id})

    with serving(model) as server, Client(address(server)) as client:
        server._scarce("2 of 64 are free")
        assert health() == health_pb2.HealthCheckResponse.NOT_SERVING and scarce() == 1
        with pytest.raises(ServerError, match="2 of 64 are free") as refused:
            client.generate("a cat", steps=1)
        assert refused.value.code.name == "RESOURCE_EXHAUSTED" and refused.value.retry_after == 1.0
        server._scarce(None)
        assert health() == health_pb2.HealthCheckResponse.SERVING and scarce() == 0
        assert client.generate("a cat", steps=1)


def test_a_server_looks(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "reserve", lambda limit: limit)
    with serving(model) as server, pytest.raises(ServerError, match="file descriptors are free"):
        Client(address(server)).generate("a cat", steps=1)
