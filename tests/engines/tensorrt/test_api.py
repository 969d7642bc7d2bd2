"""Which TensorRT, and for which GPU: what full TensorRT asks for is said in words where it cannot be had."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engines.errors import BackendError
from engines.tensorrt import api


def fake(version: str) -> ModuleType:
    module = ModuleType("tensorrt")
    module.__version__ = version  # pyright: ignore[reportAttributeAccessIssue]
    return module


@pytest.mark.parametrize("version", ["8.6.1", "10.14.1.48", "10.9.0.34"])
def test_an_old_tensorrt_is_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake(version))
    with pytest.raises(BackendError, match=rf"tensorrt {version} is too old: latentd needs 10\.15 or newer"):
        api.api(rtx=False)


@pytest.mark.parametrize("version", ["10.15.1.29", "11.4.0.106"])
def test_a_new_one_is_taken(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake(version))
    assert api.api(rtx=False).__version__ == version


@pytest.mark.parametrize(
    ("rtx", "told"), [(True, r"needs tensorrt_rtx, .*\[rtx\]"), (False, r"needs tensorrt, .*\[gpu\]")]
)
def test_none_installed(rtx: bool, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(api.importlib, "import_module", missing)
    with pytest.raises(BackendError, match=told):
        api.api(rtx)


def test_bindings_without_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    def unloadable(name: str) -> Any:
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.setattr(api.importlib, "import_module", unloadable)
    with pytest.raises(BackendError, match="tensorrt is installed but cannot be loaded here: libnvinfer"):
        api.api(rtx=False)


def test_full_tensorrt_builds_for_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = fake("11.4.0.106")
    monkeypatch.setattr(api, "present_target", lambda: None)
    with pytest.raises(BackendError, match="this machine has none; tensorrt_rtx builds without one .there is no"):
        api.choose_target(trt, "sm_90", rtx=False)
    monkeypatch.setattr(api, "present_target", lambda: "sm_90")
    assert api.choose_target(trt, None, rtx=False) == "sm_90"
    assert api.choose_target(trt, "sm_90", rtx=False) == "sm_90"
    with pytest.raises(BackendError, match="target 'sm_89': backend tensorrt builds for the GPU that is here, sm_90"):
        api.choose_target(trt, "sm_89", rtx=False)


class Config:
    """Of a full TensorRT: what it is told."""

    def __init__(self) -> None:
        self.given: list[bytes] = []
        self.set: Any = None

    def create_timing_cache(self, known: bytes) -> Any:
        self.given.append(known)
        return None if known == b"damaged" else SimpleNamespace(known=known, serialize=lambda: b"timed " + known)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> None:
        assert not ignore_mismatch
        self.set = cache

    def get_timing_cache(self) -> Any:
        return self.set


@pytest.mark.parametrize(
    ("kept", "given"), [(None, [b""]), (b"of before", [b"of before"]), (b"damaged", [b"damaged", b""])]
)
def test_full_tensorrt_remembers_its_timings(kept: bytes | None, given: list[bytes], tmp_path: Path) -> None:
    config, path = Config(), tmp_path / "timings"
    if kept is not None:
        path.write_bytes(kept)
    api.configure(fake("11.4.0.106"), config, "sm_90", rtx=False, timing=path)
    assert config.given == given and config.set.known == given[-1]
    assert api.timed(config) == b"timed " + given[-1]


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(api.ctypes, "CDLL", missing)
    assert api.present_target() is None


@pytest.mark.parametrize("fails", ["", "cuInit", "cuDeviceGet", "cuDeviceGetAttribute"])
def test_the_driver_is_asked(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def attribute(pointer: Any, which: int, device: Any) -> int:
        pointer._obj.value = {75: 8, 76: 9}[which]
        return int(fails == "cuDeviceGetAttribute")

    cuda = SimpleNamespace(
        cuInit=lambda flags: int(fails == "cuInit"),
        cuDeviceGet=lambda pointer, i: int(fails == "cuDeviceGet"),
        cuDeviceGetAttribute=attribute,
    )
    monkeypatch.setattr(api.ctypes, "CDLL", lambda name: cuda)
    assert api.present_target() == (None if fails else "sm_89")
