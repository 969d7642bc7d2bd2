"""Choosing a backend: what "auto" means, and what is told when one cannot be had."""

from __future__ import annotations

import sys

import pytest

from engines.choice import Choice
from engines.errors import BackendError
from engines.model import load
from pipeline.checkpoint.opened import Checkpoint
from pipeline.extras import install


def test_auto_is_openvino(checkpoint: Checkpoint) -> None:
    model = load(checkpoint, Choice(precision="f32"))
    assert model.backend.name == "openvino" and model.backend.precision == "f32"
    assert model.id == "tiny" and model.spec is checkpoint.spec
    assert model.tokenizer.capacity == checkpoint.spec.text.tokens - 2


def test_torch_is_f32(checkpoint: Checkpoint) -> None:
    assert load(checkpoint, Choice("torch", threads=1)).backend.precision == "f32"
    with pytest.raises(BackendError, match="precision 'bf16': backend torch is the f32 oracle"):
        load(checkpoint, Choice("torch", "bf16", threads=1))


@pytest.mark.parametrize("name", ["cuda", "", "OpenVINO", "os"])
def test_an_unknown_backend(checkpoint: Checkpoint, name: str) -> None:
    with pytest.raises(BackendError, match=f"backend {name!r} is unknown; there are: auto, openvino, .*torch"):
        load(checkpoint, Choice(name))


@pytest.mark.parametrize(
    ("backend", "module", "extra"),
    [("auto", "openvino", "cpu"), ("openvino", "openvino", "cpu"), ("torch", "torch", "export")],
)
def test_a_missing_extra_is_named(
    checkpoint: Checkpoint, backend: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"engines.cpu.{module}", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError) as caught:
        load(checkpoint, Choice(backend))
    assert f"backend {module} needs {module}, which is not installed" in str(caught.value)
    assert str(caught.value).endswith(f": {install(extra)}")
