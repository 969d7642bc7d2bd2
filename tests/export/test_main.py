"""python -m export: what it says, and its status."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import export.artifact
from engines.artifact.opened import Artifact
from export.__main__ import main
from pipeline.checkpoint.opened import Checkpoint
from pipeline.extras import install
from tests.support.checkpoints import make_checkpoint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["none", "--out", "out"],
            "none is not there, and nothing is downloaded; give a folder in ",
        ),
        (
            ["empty", "--out", "out"],
            "model_index.json is missing; a checkpoint is a folder in diffusers' layout, or a .safetensors file\n",
        ),
        (["empty"], "say where the artifact of {here}/empty goes: --out DIR, or make onnx MODEL={here}/empty OUT=dir"),
    ],
)
def test_a_refusal_is_one_sentence(
    tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main([word if word.startswith("-") else str(tmp_path / word) for word in arguments]) == 1
    output = capsys.readouterr()
    assert words.format(here=tmp_path) in output.err and output.err.count("\n") == 1 and output.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_prediction_that_there_is_not_names_where_it_was_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATENTD_PREDICTION", "v")
    for arguments, where in ((["a"], "LATENTD_PREDICTION"), (["a", "--prediction", "v"], "--prediction")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert f"{where} is 'v'; it takes auto, epsilon or v_prediction" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["onnx", "onnxruntime", "onnxscript", "torch"])
def test_a_missing_extra_is_named(
    tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("export.") and name != "export.__main__"]:
        monkeypatch.delitem(sys.modules, name)  # imported again, as at the program's start
        if name.count(".") == 1:
            monkeypatch.delattr(export, name.removeprefix("export."))
    monkeypatch.setitem(sys.modules, module, None)
    assert main([str(make_checkpoint(tmp_path / "model")), "--out", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().err == f"export needs {module}, which is not installed: {install('export')}\n"


def test_success_tells_where(
    artifact: Artifact, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def exported(checkpoint: Checkpoint, out: Path, *_: object) -> Artifact:
        asked.append((checkpoint.path, out))
        return artifact

    monkeypatch.setattr(export.artifact, "export", exported)
    assert main([str(checkpoint.path), "--out", "other"]) == 0
    assert asked == [(checkpoint.path, Path("other"))]
    assert capsys.readouterr().out == f"artifact {artifact.digest[:12]}: {artifact.folder}\n"
