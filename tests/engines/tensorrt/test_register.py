"""Our plugins against the genuine Python code of tensorrt.plugin, of two versions; nothing of it runs a kernel."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from engines.tensorrt.plugins.register import SOURCES, kernels_hash
from kernels.plugins import AddOne, Attention, compile_plugin
from tests.support.tensorrt_bindings import ROOT, VERSIONS, run_with_bindings, stand_in

ARCH = 89
CASES = [
    (AddOne("fp16"), [(3, 1000)]),
    (Attention(8, 40), [(2, 4096, 320)] * 3),
    (Attention(8, 40), [(3, 77, 320), (3, 100, 320), (3, 100, 320)]),
    (Attention(5, 64, "bf16"), [(1, 63, 320), (1, 77, 320), (1, 77, 320)]),
]

# What TensorRT does with a plugin while it builds, in its order (_plugin_class.py), with integers for dimensions:
# expressions have no constructor in the bindings, and the registry is in the library.
FLOW = """
import json
from types import SimpleNamespace
import tensorrt as trt

class Number:
    def __init__(self, value): self.value = value
    def is_constant(self): return True
    def get_constant_value(self): return self.value
class Expressions:
    def constant(self, value): return Number(value)
    def operation(self, kind, a, b):
        kinds = trt.DimensionOperation
        does = {kinds.PROD: lambda: a.value * b.value, kinds.SUM: lambda: a.value + b.value,
                kinds.CEIL_DIV: lambda: -(-a.value // b.value)}
        return Number(does[kind]())
class Registry:
    held = {}
    def register_creator(self, creator, namespace=""):
        self.held[creator.name, creator.plugin_version, creator.plugin_namespace] = creator
        return True
    def get_creator(self, *key): return self.held[key]
class Setter(dict): pass
trt.IDimensionExpr, trt.ISymExpr, trt.DimsExprs = Number, type("ISymExpr", (), {}), lambda n: [None] * n
trt.get_plugin_registry = Registry

import tensorrt.plugin as trtp
from engines.tensorrt.plugins.register import register
from kernels.plugins import AddOne, Attention

def described(shape, kind):
    one = trt.DynamicPluginTensorDesc()
    one.desc.type, one.desc.format, one.desc.dims = kind, trt.TensorFormat.LINEAR, shape
    return one

for source, shapes in CASES:
    kind = {"fp16": trt.float16, "bf16": trt.bfloat16}[source.type]
    register(trtp, [source], ARCH)
    creator = Registry().get_creator(source.name, "1", "latentd")
    plugin = creator.create_plugin(source.name, "latentd", trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD,
                                   trt.QuickPluginCreationRequest.STRICT_AOT)
    types = plugin.get_output_data_types([kind] * len(shapes), [3] * len(shapes))
    build = Expressions()
    out = plugin.get_output_shapes([[Number(d) for d in shape] for shape in shapes], [], build)
    every = [described(shape, kind) for shape in (*shapes, shapes[0])]
    combinations = plugin.get_supported_format_combinations(every, len(shapes))
    plugin.configure_plugin(every[:-1], every[-1:])
    plugin.set_tactic(0)
    params, setter = SimpleNamespace(), Setter()
    plugin.get_launch_params(None, every, len(shapes), params, setter, build)
    entry, ptx = plugin.get_kernel([one.desc for one in every[:-1]], [every[-1].desc])
    print(json.dumps({
        "version": trt.__version__, "aot": type(plugin).__name__,
        "types": [str(t) for t in types], "out": [[d.value for d in dims] for dims in out],
        "combinations": [[str(c.type), str(c.format)] for c in combinations], "tactics": plugin.get_valid_tactics(),
        "launch": {name: value.expr.value for name, value in vars(params).items()},
        "scalars": [setter[i].expr.value for i in range(setter.nbSymExprs)],
        "kinds": [str(setter[i].dtype) for i in range(setter.nbSymExprs)],
        "entry": entry, "ptx": ptx.decode(),
    }))
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in(tmp_path_factory.mktemp("tensorrt"))


@pytest.mark.compiled
@pytest.mark.parametrize("version", VERSIONS)
def test_registration_and_launch_through_tensorrts_own_python(version: str, libraries: Path) -> None:
    code = FLOW.replace("ARCH", str(ARCH)).replace("CASES", repr(CASES))
    lines = [line for line in run_with_bindings(version, libraries, code).splitlines() if line.startswith("{")]
    assert len(lines) == len(CASES)
    for line, (source, shapes) in zip(lines, CASES, strict=True):
        seen, plugin = json.loads(line), compile_plugin(source, ARCH)
        grid, scalars = plugin.launch(*shapes)
        kind = {"fp16": "DataType.HALF", "bf16": "DataType.BF16"}[source.type]
        assert seen["version"].startswith(version) and seen["aot"] == "_TemplateAOTPlugin"
        assert seen["types"] == [kind] and seen["out"] == [list(shapes[0])]
        assert seen["combinations"] == [[kind, "TensorFormat.LINEAR"]] * (len(shapes) + 1)
        assert seen["tactics"] == []
        assert seen["launch"] == {
            **dict(zip(("grid_x", "grid_y", "grid_z"), grid, strict=True)),
            **{"block_x": plugin.threads, "block_y": 1, "block_z": 1, "shared_mem": plugin.shared},
        }
        assert tuple(seen["scalars"]) == scalars
        assert seen["kinds"] == ["PluginArgDataType.INT32"] * len(scalars)
        assert (seen["entry"], seen["ptx"]) == (plugin.entry, plugin.ptx)


def test_the_kernels_hash_is_one_of_their_sources() -> None:
    assert kernels_hash() == kernels_hash() and len(kernels_hash()) == 64
    imported = set()
    for name in ("plugins", "attention", "attention_tiles", "aot"):
        tree = ast.parse((ROOT / "kernels" / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kernels"):
                parts = node.module.split(".")[1:] or [alias.name for alias in node.names]
                imported.add(f"{parts[0]}.py")
    assert imported | {"plugins.py"} == set(SOURCES), "what plugins.py is made from is what the hash reads"
