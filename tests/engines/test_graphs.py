"""Which graph a spec gets: the one that ships, the one in the cache, or one that is traced now, once."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import graphs
from engines import graphs as module
from engines.backend import BackendError
from engines.graphs import check_fit, graph_of, known_graph
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.errors import CheckpointError
from pipeline.spec import Spec
from pipeline.spec_json import spec_from_json

DEMO = Path(__file__).parents[2] / "demo" / "small-things"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path))
    return tmp_path / "graphs"


@pytest.fixture
def demo() -> Spec:
    return open_checkpoint(DEMO).spec


@pytest.fixture
def other(demo: Spec) -> Spec:
    """Of no architecture that ships."""
    return dataclasses.replace(demo, unet=dataclasses.replace(demo.unet, eps=3e-5))


@pytest.fixture
def traces(demo: Spec, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Spec]]:
    """Traces write the demo model's graph; network and spec of each."""
    every: list[tuple[str, Spec]] = []

    def run(arguments: Sequence[str]) -> None:
        word, spec, flag, network, out, path = arguments
        assert (word, flag, out) == ("trace", "--network", "--out")
        every.append((network, spec_from_json(json.loads(Path(spec).read_text()))))
        Path(path).write_bytes(graph_of(network, demo))

    monkeypatch.setattr(module, "run_export", run)
    return every


def test_what_ships_needs_no_cache(demo: Spec, folder: Path, traces: list[tuple[str, Spec]]) -> None:
    check_fit(open_checkpoint(DEMO))
    assert not folder.exists() and not traces
    assert {network for network in graphs.NETWORKS if graphs.shipped(network, demo)} == {*graphs.NETWORKS}


def test_another_is_traced_once(demo: Spec, other: Spec, folder: Path, traces: list[tuple[str, Spec]]) -> None:
    assert known_graph("unet", other) is None
    assert graph_of("unet", other) == graph_of("unet", other) == known_graph("unet", other)
    assert traces == [("unet", other)]
    assert [path.name for path in folder.iterdir()] == [graphs.name_of("unet", other)]


def test_two_processes_trace_once(other: Spec, traces: list[tuple[str, Spec]], monkeypatch: pytest.MonkeyPatch) -> None:
    run, inside, go_on = module.run_export, threading.Event(), threading.Event()

    def held(arguments: Sequence[str]) -> None:
        inside.set()
        assert go_on.wait(30)
        run(arguments)

    def told(line: str, *_: object) -> None:
        if line.startswith("waiting for process"):
            go_on.set()

    monkeypatch.setattr(module, "run_export", held)
    monkeypatch.setattr(module.log, "info", told)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(graph_of, "unet", other)
        assert inside.wait(30)
        second = pool.submit(graph_of, "unet", other)
        assert first.result() == second.result()
    assert len(traces) == 1


@pytest.mark.parametrize("damage", [b"", b"no graph", None])
def test_a_damaged_one_is_named_and_traced_again(
    damage: bytes | None,
    other: Spec,
    folder: Path,
    traces: list[tuple[str, Spec]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted, (path,) = graph_of("unet", other), folder.iterdir()
    path.write_bytes(wanted[: len(wanted) // 2] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        assert graph_of("unet", other) == wanted == path.read_bytes()
    (told,) = caplog.messages
    assert told.startswith(f"{path} is damaged (") and told.endswith("; tracing it again") and len(traces) == 2


def test_one_that_ships_damaged_is_refused(demo: Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "unet.onnx"
    path.write_bytes(b"no graph")
    monkeypatch.setattr(graphs, "shipped", lambda *_: path)
    with pytest.raises(CheckpointError, match=f"^{path} is damaged .*; install latentd again$"):
        graph_of("unet", demo)


def test_a_missing_extra_is_named(other: Spec, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(BackendError, match=r"ships without a graph of its unet, and tracing .* the extra `export`"):
        graph_of("unet", other)
    assert not folder.exists()
