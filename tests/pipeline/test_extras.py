"""The command that installs an extra, as it may be pasted: for this Python, from where the program was started."""

from __future__ import annotations

import shlex
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pipeline import extras
from pipeline.extras import install

ROOT = Path(__file__).parents[2]


def test_in_a_clone_it_is_the_clones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shlex.split(install("export", "rtx")) == [
        sys.executable,
        *("-m", "pip", "install", "-e"),
        f"{ROOT}[export,rtx]",
    ]
    monkeypatch.chdir(ROOT)
    assert shlex.split(install("cpu"))[-1] == ".[cpu]"


def test_what_it_names_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that who follows it does not meet the same sentence again."""
    monkeypatch.chdir(ROOT.parent)
    python, *_, what = shlex.split(install("cpu"))
    assert Path(python).is_file() and (Path(what.removesuffix("[cpu]")) / "pyproject.toml").is_file()


def test_of_a_wheel_it_is_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    assert install("cpu").endswith(f" -m pip install 'latentd-{metadata.version('latentd')}-py3-none-any.whl[cpu]'")
    monkeypatch.setattr(metadata, "version", lambda name: metadata.distribution("no package of this name").version)
    assert install("cpu").endswith("'latentd-VERSION-py3-none-any.whl[cpu]'")
