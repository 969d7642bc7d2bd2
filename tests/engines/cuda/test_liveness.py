"""What a graph has the addresses of is alive for as long as it may be replayed; CUDA itself keeps nothing of it."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.cuda.backend import CudaBackend
from engines.cuda.kernels import plain_kernels
from engines.cuda.stream import Stream
from engines.errors import OutOfMemory
from engines.tensorrt import api
from engines.tensorrt.serve.backend import TensorRtRtxBackend
from pipeline.checkpoint.opened import Checkpoint
from tests.support.bare import plain_artifact
from tests.support.captures import Card, Loading
from tests.support.plan_doubles import TARGET, keep_plans

SEATS = 2
GRAPHS = ("encoder", "steps", "decoder")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Card:
    monkeypatch.setenv("LATENTD_CACHE", str(tmp_path))
    monkeypatch.setattr(api, "present_target", lambda: TARGET)
    monkeypatch.setattr("engines.tensorrt.serve.backend.artifact_of", plain_artifact)  # nothing is exported
    return Card(monkeypatch)


def backend_of(checkpoint: Checkpoint, name: str, pixels: str, card: Card) -> Any:
    if name == "torch":
        return CudaBackend(checkpoint, "f32", pixels=pixels, device="cpu", kernels=plain_kernels())
    artifact = plain_artifact(checkpoint)
    keep_plans(artifact, (2, 4))
    load = Loading(artifact, card)
    return TensorRtRtxBackend(checkpoint, pixels=pixels, device="cpu", kernels=plain_kernels(), load=load)


def replays_of(backend: Any, graph: str) -> list[Callable[[], None]]:
    """Those of one kind, made as a server makes them."""
    default = backend.spec.defaults
    if graph == "encoder":
        return [encoder.run for encoder in backend._encoders.values()]
    if graph == "steps":
        return list(backend.stepper(default.width, default.height, SEATS, steps=2)._replays.values())
    return [backend._decoder_of(backend.spec.latent_shape(default.width, default.height)).replay]


@pytest.mark.parametrize("pixels", ["fast", "exact"])
@pytest.mark.parametrize("name", ["torch", "tensorrt_rtx"])
def test_while_a_server_runs_nothing_is_dead(bare: Checkpoint, card: Card, name: str, pixels: str) -> None:
    backend, default = backend_of(bare, name, pixels, card), bare.spec.defaults
    stepper = backend.stepper(default.width, default.height, SEATS, steps=2)
    backend._decoder_of(bare.spec.latent_shape(default.width, default.height))
    gc.collect()
    assert len(card.graphs) >= 1 + 2 + 1 and all(graph() for graph in card.graphs)
    assert len(card.graphs[1]().read) > 10, "a step reads its seats, its rows and its weights"  # type: ignore[union-attr]
    assert not card.dead()
    del stepper


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("pixels", ["fast", "exact"])
@pytest.mark.parametrize("name", ["torch", "tensorrt_rtx"])
def test_a_replay_owns_what_its_graph_reads(bare: Checkpoint, card: Card, name: str, pixels: str, graph: str) -> None:
    """By itself: whoever made it may go."""
    backend = backend_of(bare, name, pixels, card)
    replays = replays_of(backend, graph)
    del backend
    gc.collect()
    assert replays
    for replay in replays:
        replay()


def test_a_lane_that_finds_no_room_leaves_the_others_their_workspace(
    bare: Checkpoint, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuBLAS has one a stream, and torch 2.13 frees it when any graph of that stream is destroyed."""
    backend, default = backend_of(bare, "torch", "fast", card), bare.spec.defaults
    live = backend.stepper(default.width, default.height, SEATS, steps=2)
    captures, before = itertools.count(), len(card.graphs)

    def full(stream: Stream, taken: int) -> None:
        if next(captures) == 2:
            raise OutOfMemory("the GPU's memory is full")

    with monkeypatch.context() as at_this:
        at_this.setattr(Stream, "_ensure_memory", full)
        with pytest.raises(OutOfMemory, match=r"^2 seats of 24x24 and prompts of 2 x "):
            backend.stepper(default.width, default.height, SEATS, 2, steps=2)
    gc.collect()
    assert len(card.graphs) == before + 2
    for replay in live._replays.values():
        replay()
