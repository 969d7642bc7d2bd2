"""Two servers behind the real Envoy, killed and restarted under load; `python -m benchmarks.machines` does more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from benchmarks.machines.__main__ import killed, restarted
from benchmarks.machines.balancer import ENVOY, Balancer, balanced, until
from benchmarks.machines.callers import ONCE, SEEDS, blocking, over_http, unary_load
from benchmarks.machines.fleet import ROOT, Machine, fleet
from pipeline.checkpoint.opened import Checkpoint
from tests.support.manifests import BALANCER, container

pytestmark = pytest.mark.skipif(
    not ENVOY.exists(), reason="make test installs Envoy where there is one for this machine"
)

# Health is answered in time only where the cores are not all taken by other tests; else both servers look dead at once.
UNLOADED = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def machines(checkpoint: Checkpoint) -> Iterator[list[Machine]]:
    with fleet(checkpoint.path, 2, "--precision", "f32") as machines:
        yield machines


@pytest.fixture(scope="module")
def balancer(machines: list[Machine]) -> Iterator[Balancer]:
    with balanced(machines) as balancer:
        balancer.wait(len(machines))
        yield balancer


@pytest.fixture(scope="module")
def pictures(machines: list[Machine]) -> dict[int, str]:
    """What each seed's picture is, from the first server."""
    with grpc.insecure_channel(f"{machines[0].host}:{machines[0].grpc}", ONCE) as channel:
        return {seed: blocking(channel, seed, steps=4).picture for seed in range(SEEDS)}


def test_pictures_are_the_same_bytes_from_either_server_and_by_either_door(
    machines: list[Machine], balancer: Balancer, pictures: dict[int, str]
) -> None:
    assert len({*pictures.values()}) == SEEDS and all(pictures.values())
    for address in (f"{machines[1].host}:{machines[1].grpc}", balancer.address):
        with grpc.insecure_channel(address, ONCE) as channel:
            assert {seed: blocking(channel, seed, steps=4).picture for seed in pictures} == pictures
    assert {seed: over_http(balancer.http, seed, steps=4).picture for seed in pictures} == pictures


@UNLOADED
def test_no_unary_call_fails_at_a_kill_and_streams_end(
    machines: list[Machine], balancer: Balancer, pictures: dict[int, str]
) -> None:
    streams = []
    with unary_load(balancer.address, balancer.http, 4, steps=4) as ends:
        for turn in range(2):
            until(lambda: len(ends) > 4)
            streams += killed(machines, balancer, turn, at_once=True)[0]
    assert [end for end in ends if end.code != "OK"] == []
    assert all(end.picture == pictures[end.seed] for end in ends) and len(ends) > 10
    assert {end.code for end in streams} <= {"UNAVAILABLE", "INTERNAL"}


@UNLOADED
@pytest.mark.parametrize("at_once", [False, True], ids=["waits-for-envoy", "at-once"])
def test_nothing_fails_at_a_rolling_restart(
    machines: list[Machine], balancer: Balancer, pictures: dict[int, str], at_once: bool
) -> None:
    with unary_load(balancer.address, balancer.http, 4, steps=4) as ends:
        assert restarted(machines, balancer, at_once=at_once) == [0, 0]
    assert [end for end in ends if end.code != "OK"] == []
    assert all(end.picture == pictures[end.seed] for end in ends) and len(ends) > 4


def test_methods_of_one_server_are_not_led_to_any(balancer: Balancer) -> None:
    for path in ("sdapi/v1/interrupt", "sdapi/v1/%69nterrupt", "sdapi%2Fv1/interrupt"):  # one path to a server
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{balancer.http}/{path}", b"", timeout=60).close()
        assert refused.value.code == 501 and "of one server" in json.load(refused.value)["detail"]
    with urllib.request.urlopen(f"{balancer.http}/sdapi/v1/samplers", timeout=60) as answer:
        assert json.load(answer), "the others are"
    with grpc.insecure_channel(balancer.address, ONCE) as channel, pytest.raises(grpc.RpcError) as swap:
        channel.unary_unary("/latentd.v1.Admin/State")(b"", timeout=60)
    assert swap.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
    assert swap.value.details() == "latentd.v1.Admin is of one server: ask each one directly"  # type: ignore[attr-defined]


def test_the_balancer_drains_as_its_pod_does(machines: list[Machine]) -> None:
    """What preStop says, but for its sleep: no new connections, and who is connected is asked to leave."""
    *shell, words = container(BALANCER)["lifecycle"]["preStop"]["exec"]["command"]
    with balanced(machines) as balancer:
        words = words.replace("127.0.0.1/9901", balancer.admin.replace(":", "/")).partition("; sleep")[0]
        with grpc.insecure_channel(balancer.address, ONCE) as channel:
            balancer.wait(len(machines))
            assert blocking(channel, 0, steps=1).code == "OK"
            told = subprocess.run([*shell, words], capture_output=True, text=True, check=True, timeout=60).stdout
            assert told.startswith("HTTP/1.1 200 OK") and "\nOK\n" in told
            assert blocking(channel, 1, steps=1).code == "OK", "who is connected is served on"


@pytest.mark.parametrize("serving", [False, True], ids=["while-they-load", "once-they-serve"])
def test_the_benchmark_leaves_no_server_behind_when_it_is_told_to_end(checkpoint: Checkpoint, serving: bool) -> None:
    command = [sys.executable, "-m", "benchmarks.machines", "--dry", "--steps", "1", "--model", str(checkpoint.path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: len(_children(process.pid)) == 2 + serving)  # Envoy starts once both serve
        children = _children(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    left = [child for child in children if Path("/proc", child).exists()]
    for child in left:
        os.kill(int(child), signal.SIGKILL)
    assert left == []


def _children(pid: int) -> list[str]:
    """The processes that any thread of a process has started."""
    lists = Path("/proc", str(pid), "task").glob("*/children")
    return [child for children in lists for child in children.read_text().split()]
