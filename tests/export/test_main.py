"""python -m export: what it says, and its status."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import export.artifact
from engines.artifact import Artifact
from export.__main__ import main
from tests.checkpoints import make_checkpoint


def test_a_refusal_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 1
    told = capsys.readouterr()
    assert (
        told.err == f"{tmp_path / 'none/model_index.json'} is missing; a checkpoint is a folder in diffusers' layout\n"
    )
    assert told.out == ""


@pytest.mark.parametrize("module", ["onnx", "onnxruntime", "onnxscript", "torch"])
def test_a_missing_extra_is_named(
    tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("export.") and name != "export.__main__"]:
        monkeypatch.delitem(sys.modules, name)  # imported again, as at the program's start
        if name.count(".") == 1:
            monkeypatch.delattr(export, name.removeprefix("export."))
    monkeypatch.setitem(sys.modules, module, None)
    assert main([str(make_checkpoint(tmp_path))]) == 1
    assert capsys.readouterr().err == f"export needs {module}: pip install -e '.[export]'\n"


def test_success_tells_where(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def exported(*arguments: object) -> Artifact:
        asked.append(arguments[:2])
        return artifact

    monkeypatch.setattr(export.artifact, "export", exported)
    assert main(["some/folder", "--out", "other"]) == 0
    assert asked == [(Path("some/folder"), Path("other"))]
    assert capsys.readouterr().out == f"artifact {artifact.digest[:12]}: {artifact.folder}\n"
