"""Every name of TensorRT that plugins and trt-check use exists in the genuine modules of 10.15 and 11.4."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.support.tensorrt_bindings import ROOT, VERSIONS, run_with_bindings, stand_in

# What our variables of these names hold, whether local or an attribute of self: classes of the module, one of them.
HOLD = {
    "trt": [""],
    "trtp": ["plugin"],
    "builder": ["Builder"],
    "config": ["IBuilderConfig"],
    "engine": ["ICudaEngine"],
    "network": ["INetworkDefinition"],
    "parser": ["OnnxParser"],
    "runtime": ["Runtime"],
}


def used(path: Path) -> set[str]:
    """Dotted names, rooted at a variable of HOLD: `trt.Runtime`, `self._engine.x` as `engine.x`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Attribute):
            parts = ast.unparse(node).split(".")
            if parts[0] == "self" and len(parts) > 2:
                parts = [parts[1].lstrip("_"), *parts[2:]]
            if parts[0] in HOLD and all(part.isidentifier() for part in parts):
                found.add(".".join(parts))
    return found


FILES = [
    *(ROOT / "engines/tensorrt/plugins").glob("*.py"),
    *(ROOT / "engines/tensorrt/ladder").glob("*.py"),
    ROOT / "engines/tensorrt/build/inspection.py",
]
NAMES = sorted({name for path in FILES for name in used(path)})

RESOLVE = """
import json
import tensorrt as trt
import tensorrt.plugin

def missing(name):
    first, *rest = name.split(".")
    return all(absent([held] * bool(held) + rest) for held in HOLD[first])

def absent(parts):
    here = trt
    for part in parts:
        if not hasattr(here, part):
            return True
        here = getattr(here, part)
        if isinstance(here, property) or not isinstance(here, type | type(trt)):
            return False  # what a property or a method gives is not to be known from here
    return False

print(json.dumps([trt.__version__, [name for name in NAMES if missing(name)]]))
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in(tmp_path_factory.mktemp("tensorrt"))


def test_the_walk_sees_names() -> None:
    assert {"trtp.KernelLaunchParams", "trtp.aot_impl", "trt.LayerInformationFormat.JSON"} <= set(NAMES)
    assert {"engine.create_engine_inspector", "runtime.deserialize_cuda_engine"} <= set(NAMES)


@pytest.mark.parametrize("version", VERSIONS)
def test_names(version: str, libraries: Path) -> None:
    names = [*NAMES, "trt.NoSuchName", "trtp.no_such_name", "config.no_such_name"]
    code = f"NAMES = {names!r}\nHOLD = {HOLD!r}\n{RESOLVE}"
    found, missing = json.loads(run_with_bindings(version, libraries, code).splitlines()[-1])
    assert found.startswith(version)
    invented = {"trt.NoSuchName", "trtp.no_such_name", "config.no_such_name"}
    assert invented <= set(missing), "the check checks"
    assert set(missing) == invented
