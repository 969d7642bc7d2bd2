"""Tracing: the committed bytes come out again, the command writes them, and the encoder's moments hold its latents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from export import graphs_command
from export.__main__ import main
from export.committed import TESTS, clips_under_test, under_test
from export.graph import trace
from export.graphs_command import random_error
from export.networks import NETWORKS, VISION, Network
from graphs import name_of
from model.random import init_random, init_windows
from model.unet import Unet
from model.vae import VaeEncoder, VaeMoments
from model.weights import empty

ROOT = Path(__file__).parents[2]
SPECS = under_test()


@pytest.mark.parametrize(
    "network",
    [
        # The VAE's encoder is traced below, its decoder has the same layers; `make test-all` traces all four.
        pytest.param(network, id=network.name, marks=[pytest.mark.exhaustive] if network.name.startswith("vae") else [])
        for network in NETWORKS
    ],
)
def test_the_committed_bytes_come_out_again(network: Network) -> None:
    """The others' do under `make graphs`."""
    spec = SPECS["sd1"]
    graph = trace(network, spec)
    assert graph == (TESTS / name_of(network.name, spec)).read_bytes()
    assert random_error(network, spec, graph) < 1e-5


def test_weights_that_lie_over_each_other_are_others_each() -> None:
    net = init_windows(empty(lambda: Unet(SPECS["sd1"].unet)), 1)
    alike: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for parameter in net.parameters():
        assert all((parameter != other).float().mean() > 0.99 for other in alike.get(tuple(parameter.shape), []))
        alike.setdefault(tuple(parameter.shape), []).append(parameter)
    stored = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in net.parameters()}
    assert (
        max(map(len, alike.values())) > 10 and sum(stored.values()) < sum(each.nbytes for each in net.parameters()) / 2
    )


def test_those_of_a_vision_tower_too() -> None:
    spec = clips_under_test()["clip encoder"]
    graph = trace(VISION, spec)
    assert graph == (TESTS / name_of(VISION.name, spec)).read_bytes()
    assert random_error(VISION, spec, graph) < 1e-5


def run(spec: Path, network: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export", "trace", str(spec), "--network", network, "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)


def test_a_process_traces_a_spec_of_which_nothing_else_is_there(tmp_path: Path) -> None:
    """Of another process and another spec around the network the bytes are the same."""
    file, out = tmp_path / "spec.json", tmp_path / "new/graph.onnx"
    file.write_text(json.dumps(SPECS["sd2"].to_json() | {"vae": SPECS["sd1"].to_json()["vae"]}))
    ran = run(file, "vae_encoder", out)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert out.read_bytes() == (TESTS / name_of("vae_encoder", SPECS["sd1"])).read_bytes()
    assert list(out.parent.iterdir()) == [out]


def test_a_spec_that_no_network_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "spec.json", tmp_path / "graph.onnx"
    values = SPECS["sd1"].to_json()
    file.write_text(json.dumps(values | {"unet": values["unet"] | {"heads": [5, 5]}}))
    assert main(["trace", str(file), "--network", "unet", "--out", str(out)]) == 1 and not out.exists()
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"the unet of {file} cannot be traced: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is missing"),
        (b"{", "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON"),
        (b"[]", "it must be an object"),
        (b'{"text": {}}', "spec.unet is missing"),
    ],
)
def test_what_is_no_spec(tmp_path: Path, content: bytes | None, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "spec.json"
    if content is not None:
        file.write_bytes(content)
    assert main(["trace", str(file), "--network", "unet", "--out", str(tmp_path / "graph.onnx")]) == 1
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == ""


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_the_mean_of_the_moments_is_the_encoders_latents(kind: str) -> None:
    """sd2 has a shift and no quant_conv."""
    spec = SPECS[kind]
    path = TESTS / name_of("vae_encoder", spec)
    old, new = (init_random(build(spec.vae), 3) for build in (VaeEncoder, VaeMoments))
    picture = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        wanted, (mean, logvar), moments = old(picture), old.distribution(picture), new(picture)
    assert torch.equal(moments, torch.cat((mean, old.moments(picture).chunk(2, 1)[1]), dim=1))
    assert torch.equal(logvar, moments.chunk(2, dim=1)[1].clamp(-30, 20))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    weights = {name: value.numpy() for name, value in old.named_parameters()}
    got = np.asarray(session.run(["moments"], {"picture": picture.numpy()} | weights)[0])
    assert got.shape == (2, 2 * spec.vae.latent_channels, 16 // spec.vae.factor, 24 // spec.vae.factor)
    scaled = (got[:, : spec.vae.latent_channels] - spec.vae.shift_factor) * spec.vae.scaling_factor
    np.testing.assert_allclose(scaled, wanted.numpy(), rtol=0, atol=1e-5 * float(wanted.abs().max()))
    np.testing.assert_allclose(got, moments.numpy(), rtol=0, atol=1e-5 * float(moments.abs().max()))


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One small graph is listed, in a folder where it is not yet."""
    spec = SPECS["sd1"]
    name = name_of("text_encoder", spec)
    graph = (TESTS / name).read_bytes()
    monkeypatch.setattr(graphs_command, "committed", lambda: {tmp_path / name: ("text_encoder", spec)})
    monkeypatch.setattr(graphs_command, "trace", lambda *_: graph)
    monkeypatch.setattr(graphs_command, "SHIPPED", tmp_path)
    monkeypatch.setattr(graphs_command, "TESTS", tmp_path)
    return tmp_path / name


def test_what_is_missing_is_written_and_what_differs_is_named(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = (TESTS / listed.name).read_bytes()
    assert main(["graphs", "--check"]) == 1 and not listed.exists()
    assert f"1 graphs are not what is committed: {listed.name} (missing)" in capsys.readouterr().err
    assert main(["graphs"]) == 0 and listed.read_bytes() == graph
    assert main(["graphs", "--check"]) == 0
    listed.write_bytes(graph[:-1])
    listed.with_name("unet-0.onnx").write_bytes(b"")
    capsys.readouterr()
    for arguments in (["graphs"], ["graphs", "--check"]):
        assert main(arguments) == 1 and listed.read_bytes() == graph[:-1]
        assert f": {listed.name} (other bytes), unet-0.onnx (of no listed spec)\n" in capsys.readouterr().err


def test_a_graph_that_computes_something_else_is_not_written(
    listed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another epsilon the inputs are the same and the numbers are not."""
    wrong = (TESTS / listed.name).read_bytes().replace(np.float32(3e-5).tobytes(), np.float32(3e-1).tobytes())
    monkeypatch.setattr(graphs_command, "trace", lambda *_: wrong)
    assert main(["graphs"]) == 1 and not listed.exists()
    assert "text_encoder: ONNX Runtime differs from torch by" in capsys.readouterr().err
