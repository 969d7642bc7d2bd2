"""What Triton needs to launch its first kernel, each of it missing in turn."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import re
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.errors import BackendError
from engines.machine import toolchain
from pipeline.extras import install


@pytest.fixture(autouse=True)
def complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has all of it: a gcc, Python's header, a cache that is not there yet."""
    for name in ("CC", "CPATH", "C_INCLUDE_PATH", "TRITON_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "deep/cache"))
    (tmp_path / "include").mkdir()
    (tmp_path / "include/Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path / "include")})
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in ("gcc", "cc") else None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.7.1")
    return tmp_path


def refused(told: str) -> None:
    with pytest.raises(BackendError, match=told):
        toolchain.check_toolchain()


def test_nothing_is_missing(monkeypatch: pytest.MonkeyPatch, complete: Path) -> None:
    toolchain.check_toolchain()
    monkeypatch.setenv("CC", "cc")
    toolchain.check_toolchain()
    assert not (complete / "deep").exists(), "nothing is written"


def test_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "icc")
    refused("CC is 'icc', and there is no such program; .*unset CC, or apt-get install gcc")
    monkeypatch.delenv("CC")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    refused("with a C compiler, and there is none: apt-get install gcc, or set CC to one$")


def test_python_s_header(monkeypatch: pytest.MonkeyPatch, complete: Path) -> None:
    (complete / "include/Python.h").rename(complete / "Python.h")
    refused(re.escape(f"{complete}/include/Python.h, which is not there: apt-get install gcc python3-dev"))
    monkeypatch.setenv("CPATH", f"/nowhere:{complete}")  # as a compiler looks for it
    toolchain.check_toolchain()


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, complete: Path) -> None:
    place = complete / "deep"
    place.mkdir()
    access: Callable[..., bool] = os.access
    monkeypatch.setattr(os, "access", lambda path, how: path != place and access(path, how))  # we may be root
    refused(f"kernels in {place}/cache, and {place} cannot be written: set TRITON_CACHE_DIR to a folder")
    monkeypatch.setattr(os, "access", access)
    place.rmdir()
    place.touch()
    refused("cannot be written")


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    refused("where 5 MB are free and 64 MB may be needed: set TRITON_CACHE_DIR")


def test_a_cache_that_was_shipped_needs_none_of_it(monkeypatch: pytest.MonkeyPatch, complete: Path) -> None:
    launcher = complete / "deep/cache/KEY/cuda_utils.cpython-312-x86_64-linux-gnu.so"
    launcher.parent.mkdir(parents=True)
    launcher.touch()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(os, "access", lambda path, how: False)
    toolchain.check_toolchain()


@pytest.mark.parametrize("version", ["3.5.1", "2.1.0+abc"])
def test_an_older_triton(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    refused(re.escape(f"triton {version} is too old, the kernels are for 3.6 and 3.7: {install('kernels')}"))


def test_a_newer_triton_is_tried(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.10.0")
    toolchain._warn_of.cache_clear()
    with caplog.at_level(logging.WARNING):
        toolchain.check_toolchain()
        toolchain.check_toolchain()
    assert caplog.messages == ["triton 3.10.0 is newer than 3.7, the last one that the kernels were tested with"]


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused("need triton, which is not installed: .* -m pip install -e '.*\\[kernels\\]'")


def test_a_triton_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's containers bring theirs as pytorch-triton; one that was built by hand may have no name at all."""

    def version(name: str) -> str:
        if name == "pytorch-triton":
            return "3.6.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert toolchain.installed() == "3.6.0"
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version("triton"))
    assert toolchain.installed() == "none"
    toolchain.check_toolchain()
