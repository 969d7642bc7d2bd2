"""Which graph a network gets: the one that ships, the one that was kept, or one that is traced once, by a child."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import graphs as shipped_graphs
from engines import graphs
from engines.errors import BackendError
from engines.graphs import check_fit, graph_of, known_graph
from engines.process import exporting
from graphs import ports, wire
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from pipeline.errors import CheckpointError
from pipeline.extras import install
from pipeline.spec import Spec
from pipeline.spec_json import spec_from_json
from tests.support.checkpoints import make_checkpoint
from tests.support.full_size import make_full_size

ROOT = Path(__file__).parents[2]
TRACED = next(Path(shipped_graphs.__file__).parent.glob("vae_encoder-*.onnx")).read_bytes()  # any graph
Traces = list[tuple[str, Spec]]


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that has no graphs."""
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def spec(checkpoint: Checkpoint) -> Spec:
    return checkpoint.spec


@pytest.fixture
def traces(empty: Path, monkeypatch: pytest.MonkeyPatch) -> Traces:
    """Children become a line in a list."""
    done: Traces = []

    def run(arguments: list[str]) -> None:
        command, spec, flag, network, out_flag, out = arguments
        assert (command, flag, out_flag) == ("trace", "--network", "--out")
        done.append((network, spec_from_json(json.loads(Path(spec).read_text()))))
        Path(out).write_bytes(TRACED)

    monkeypatch.setattr(graphs, "run_export", run)
    return done


def never(*_: object) -> None:
    pytest.fail("a graph was traced")


def test_the_demo_model_s_graphs_ship(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "run_export", never)
    monkeypatch.setattr(graphs, "check_extra", never)
    demo = open_checkpoint(ROOT / "demo/small-things")
    for network in shipped_graphs.NETWORKS:
        path = shipped_graphs.shipped(network, demo.spec)
        assert path and graph_of(network, demo.spec) == path.read_bytes()
    check_fit(demo)
    assert not empty.exists()


@pytest.mark.parametrize(
    "model", ["stabilityai/stable-diffusion-xl-base-1.0", "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"]
)
def test_sdxl_s_full_size_ships_and_takes_loras(
    tmp_path: Path, empty: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """Of the tensors that diffusers' and transformers' own networks have, none is missing and none too many."""
    monkeypatch.setattr(graphs, "run_export", never)
    monkeypatch.setattr(graphs, "check_extra", never)
    sdxl = open_checkpoint(make_full_size(tmp_path / "sdxl", model))
    check_fit(sdxl)
    layers = {network: ports.adapted_layers(network, ports.adapted(sdxl.spec)) for network in ("text_encoder", "unet")}
    assert {network: len(each) for network, each in layers.items()} == {"text_encoder": 6 * (12 + 32), "unet": 722}
    for network, each in layers.items():
        graph = graph_of(network, ports.adapted(sdxl.spec))
        assert wire.weights(graph) == wire.weights(graph_of(network, sdxl.spec))
        taken = {port.name: port.dims for port in wire.ports(graph)}
        assert all(
            taken[port.name] == tuple(side if isinstance(side, int) else None for side in port.shape)
            for port in ports.adapters(each)
        )
    assert not empty.exists()


def test_an_unknown_architecture_is_traced_once_and_kept(spec: Spec, traces: Traces, empty: Path) -> None:
    assert known_graph("unet", spec) is None
    assert [graph_of("unet", spec) for _ in range(2)] == [TRACED, TRACED]
    assert traces == [("unet", spec)] and known_graph("unet", spec) == TRACED
    name = graphs.kept_name(shipped_graphs.name_of("unet", spec))
    assert [path.name for path in (empty / "graphs").iterdir()] == [name] and graphs.tracer() in name
    other = dataclasses.replace(spec, unet=dataclasses.replace(spec.unet, eps=3e-5))
    graph_of("unet", other)
    graph_of("text_encoder", other)
    assert [network for network, _ in traces] == ["unet", "unet", "text_encoder"], "each belongs to its own part"


def test_what_another_tracer_left_is_traced_again(
    spec: Spec, traces: Traces, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph_of("unet", spec)
    assert re.fullmatch("[0-9a-f]{12}", graphs.tracer()) and graphs.seal_of("unet", spec) == graphs.tracer()
    monkeypatch.setattr(graphs, "tracer", lambda: "another")
    assert known_graph("unet", spec) is None and graph_of("unet", spec) == TRACED
    assert len(traces) == len(list((empty / "graphs").iterdir())) == 2


def test_the_tracer_s_seal_is_of_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file that it names is there, and one byte in any of them makes another tracer."""
    root = Path(graphs.__file__).parents[1]
    for pattern in graphs._TRACER:
        assert list(root.glob(pattern)), pattern
        for path in root.glob(pattern):
            copy = tmp_path / path.relative_to(root)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(graphs, "__file__", str(tmp_path / "engines/graphs.py"))
    seal = graphs.tracer.__wrapped__
    assert seal() == graphs.tracer()
    for path in ("model/unet.py", "export/graph.py", "graphs/wire.py"):
        with (tmp_path / path).open("a") as file:
            file.write("#")
        assert seal() != graphs.tracer()
        (tmp_path / path).write_bytes((root / path).read_bytes())


def test_what_does_not_shape_a_network_names_no_other_graph(spec: Spec, traces: Traces) -> None:
    graph_of("unet", spec)
    schedule = dataclasses.replace(spec.schedule, prediction="v_prediction")
    graph_of("unet", dataclasses.replace(spec, schedule=schedule, text=dataclasses.replace(spec.text, layers=9)))
    graph_of("unet", dataclasses.replace(spec, unet=dataclasses.replace(spec.unet, sample_size=64)))
    assert len(traces) == 1


def test_two_threads_trace_once(spec: Spec, traces: Traces, monkeypatch: pytest.MonkeyPatch) -> None:
    run, inside, go_on = graphs.run_export, threading.Event(), threading.Event()

    def held(arguments: list[str]) -> None:
        inside.set()
        assert go_on.wait(30)
        run(arguments)

    def waits(line: str, *_: object) -> None:
        if line.startswith("waiting for process"):
            go_on.set()

    monkeypatch.setattr(graphs, "run_export", held)
    monkeypatch.setattr(graphs.log, "info", waits)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(graph_of, "unet", spec)
        assert inside.wait(30)
        second = pool.submit(graph_of, "unet", spec)
        assert first.result() == second.result() == TRACED
    assert len(traces) == 1


_ANOTHER = """
import json, logging, sys
from pathlib import Path
from engines import graphs
from pipeline.spec_json import spec_from_json
def run(arguments):
    print("inside", flush=True)
    sys.stdin.readline()
    Path(arguments[-1]).write_bytes(Path(sys.argv[2]).read_bytes())
graphs.run_export = run
graphs.log.info = lambda line, *_: line.startswith("waiting") and print("waits", flush=True)
print(len(graphs.graph_of("unet", spec_from_json(json.loads(sys.argv[1])))), flush=True)
"""


def test_two_processes_trace_once(spec: Spec, empty: Path, tmp_path: Path) -> None:
    (tmp_path / "traced").write_bytes(TRACED)

    def process() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _ANOTHER, json.dumps(spec.to_json()), str(tmp_path / "traced")]
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with process() as one:
        assert one.stdin and one.stdout and one.stdout.readline() == "inside\n"
        with process() as other:
            assert other.stdout and other.stdout.readline() == "waits\n"
            one.stdin.write("\n")
            one.stdin.flush()
            assert one.stdout.readline() == f"{len(TRACED)}\n" == other.stdout.readline()
        assert (one.wait(30), other.wait(30)) == (0, 0)
    assert known_graph("unet", spec) == TRACED


@pytest.mark.parametrize("module", ["torch", "onnx"])
def test_a_missing_extra_is_named(spec: Spec, traces: Traces, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[..., object] = exporting.importlib.util.find_spec
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(BackendError) as caught:
        graph_of("vae_decoder", spec)
    assert str(caught.value) == (
        "this architecture ships without a graph of its vae_decoder, and tracing one (once, no weights) needs the "
        "extra `export`: " + install("export")
    )
    assert not traces


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo working >&2; echo the last word >&2; exit 1", "the last word"),
        ("exit 1", "the export ended with status 1"),
        ("echo working >&2; kill -9 $$", "the export ended with status -9"),
    ],
)
def test_a_child_that_fails_is_told_in_its_last_word(
    spec: Spec, empty: Path, tmp_path: Path, script: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(exporting.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(CheckpointError) as caught:
        graph_of("text_encoder", spec)
    assert str(caught.value) == words
    assert not list((empty / "graphs").glob("*.onnx")) and not exporting._running


@pytest.mark.parametrize("content", [b"", b"\x00", b"half"])
def test_a_kept_graph_that_is_damaged_is_traced_again(
    spec: Spec, traces: Traces, empty: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = empty / "graphs" / graphs.kept_name(shipped_graphs.name_of("unet", spec))
    graph_of("unet", spec)
    path.write_bytes(content)
    assert graph_of("unet", spec) == path.read_bytes() == TRACED and len(traces) == 2
    assert f"{path} is damaged" in caplog.text


def test_a_fit_names_network_part_and_tensor(tmp_path: Path, checkpoint: Checkpoint) -> None:
    check_fit(checkpoint)
    folder = make_checkpoint(tmp_path)
    for part, name in (("unet", "conv_in.bias"), ("vae", "encoder.conv_in.bias"), ("vae", "decoder.conv_in.bias")):
        path = folder / part / "diffusion_pytorch_model.safetensors"
        whole = load_file(path)
        save_file({key: tensor for key, tensor in whole.items() if key != name}, path)
        with pytest.raises(CheckpointError) as caught:
            check_fit(open_checkpoint(folder))
        assert str(path) in str(caught.value) and f"1 missing ({name})" in str(caught.value)
        save_file(whole, path)
    check_fit(open_checkpoint(folder))
