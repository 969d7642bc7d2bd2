"""Every name of TensorRT's API that is used exists: in the RTX that is installed, and in full TensorRT's bindings.

Full TensorRT's names come from its wheels, through tests/support/tensorrt_names.py, since the wheel cannot be imported
without libraries of 2 GB. Which class an attribute is of follows from the name of the variable, by the table below.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import tensorrt_rtx

from tests.support.tensorrt_names import read_names

ENGINES = Path(__file__).parents[3] / "engines/tensorrt"
NAMES = read_names(Path(__file__).with_name("names.txt"))
VARIABLES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "fault": "ParserError",
    "layer": "ILayer",
    "tensor": "ITensor",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "_runtime": "Runtime",
    "_context": "IExecutionContext",
    "config": ("IBuilderConfig", "IRuntimeConfig"),
}
# Used only where the backend is RTX, or where the object says that it has it.
RTX_ONLY = {
    ("trt", "ComputeCapability"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("BuilderFlag", "REQUIRE_USER_ALLOCATION"),
    ("IRuntimeConfig", "create_runtime_cache"),
    ("IRuntimeConfig", "set_runtime_cache"),
}
FILES = ("api", "build/builder", "build/callbacks", "serve/engine")


def used(part: str) -> set[tuple[str, str]]:
    """(class, member) of each use in engines/tensorrt/<part>.py; of the module itself ("trt", name)."""
    found = set()
    for node in ast.walk(ast.parse((ENGINES / f"{part}.py").read_text())):
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            continue
        path = ast.unparse(node.value).split(".")
        if path in (["trt"], ["self", "_trt"]):
            found.add(("trt", node.attr))
        elif path[0] == "trt" and len(path) == 2:
            found.add((path[1], node.attr))
        elif path[-1] in VARIABLES and path[0] in (path[-1], "self"):
            kinds = VARIABLES[path[-1]]
            kinds = (kinds,) if isinstance(kinds, str) else kinds
            # Of a variable that stands for two classes: the one that has it in RTX, which has all of them.
            own = [kind for kind in kinds if hasattr(getattr(tensorrt_rtx, kind), node.attr)]
            found.add(((own or kinds)[0], node.attr))
    return found


@pytest.mark.parametrize("part", FILES)
def test_rtx_has_every_name(part: str) -> None:
    names = used(part)
    assert len(names) > 4, "the walk sees them"
    for kind, name in names:
        owner = tensorrt_rtx if kind == "trt" else getattr(tensorrt_rtx, kind)
        if kind == "ILayer" and name == "attention":  # after its class was set
            owner = tensorrt_rtx.IAttentionInputLayer
        assert hasattr(owner, name), f"{kind}.{name}"


@pytest.mark.parametrize("version", NAMES)
@pytest.mark.parametrize("part", FILES)
def test_full_tensorrt_has_every_name(part: str, version: str) -> None:
    known = NAMES[version]
    for kind, name in used(part) - RTX_ONLY:
        owner = "IAttentionInputLayer" if (kind, name) == ("ILayer", "attention") else kind
        assert owner in known, f"{version}: run tests/support/tensorrt_names.py with {owner} among its classes"
        assert name in known[owner], f"{version}: {kind}.{name}"


def test_what_is_said_to_be_rtx_only_is() -> None:
    """If full TensorRT learns one of these, the difference can go."""
    everything = set().union(*(used(part) for part in FILES))
    assert everything >= RTX_ONLY
    for known in NAMES.values():
        assert not [name for kind, name in RTX_ONLY if name in known.get(kind, set())]


def test_both_floors_are_checked() -> None:
    assert [version.split(".")[:2] for version in NAMES] == [["10", "15"], ["11", "4"]]
    assert all("decomposable" in known["IAttention"] for known in NAMES.values())
