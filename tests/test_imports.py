"""Who may import whom (docs/design.md), read from the sources: also what is imported inside a function."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Folder: what else of ours it may import. benchmarks, demo, deploy and tests may import anything.
OURS = {
    "latentd": set(),
    "pipeline": set(),
    "kernels": set(),
    "graphs": {"pipeline"},
    "model": {"pipeline"},
    "engines": {"pipeline", "graphs", "kernels", "model"},
    "export": {"pipeline", "graphs", "model", "engines"},
    "server": {"pipeline", "engines", "latentd"},
    "training": {"pipeline", "model", "export"},
    "benchmarks": {"pipeline", "graphs", "kernels", "model", "engines", "export", "server", "latentd", "training"},
    "demo": {"latentd"},
}
# `latentd serve` starts the server that came with the client, and imports it for nothing else; the names of the
# environment variables are the client's to tell.
EXCEPT = {"latentd/__main__.py": {"server"}, "engines/__main__.py": {"latentd"}}
# Foreign packages of the folders that must stay light; the standard library is everybody's.
FOREIGN = {
    "latentd": {"grpc", "google", "PIL", "tqdm"},
    "pipeline": {"numpy", "tokenizers"},
    "graphs": set(),
    "model": {"torch", "safetensors"},
    "server": {"grpc", "grpc_health", "grpc_reflection", "grpc_status"}
    | {"google", "numpy", "PIL", "prometheus_client", "yaml"},
}
# In engines/, the one family of files that may import each of these.
ENGINES_OWN = {
    "torch": ("torch", "cuda"),
    "model": ("torch", "cuda"),
    "kernels": ("torch", "cuda", "tensorrt"),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt",),
}
NOBODYS_NAMES = ("scheduler", "manager", "util", "helper")


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


FILES = [path.relative_to(ROOT) for folder in OURS for path in modules(folder)]


def dotted(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it, and what it imports by a literal name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module if node.level == 0 and node.module else path.parts[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {str(part.value) for part in node.args if isinstance(part, ast.Constant)}
    return found


def imported(path: Path) -> set[str]:
    """The first name of each."""
    return {name.split(".")[0] for name in dotted(path)}


def test_the_walk_sees_imports() -> None:
    assert len(FILES) > 60 and Path("latentd/v1/images_pb2.py") in FILES
    assert {"openvino", "numpy", "engines", "threading"} <= imported(Path("engines/openvino.py"))
    assert "export" in imported(Path("export/__main__.py")), "inside a function"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_ours(path: Path) -> None:
    folder = path.parts[0]
    others = imported(path) & (OURS.keys() | {"tests", "deploy"}) - {folder}
    allowed = OURS[folder] | EXCEPT.get(path.as_posix(), set())
    assert others <= allowed, f"{path} imports {sorted(others - allowed)}"


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] in FOREIGN], ids=str)
def test_foreign(path: Path) -> None:
    known = FOREIGN[path.parts[0]] | OURS.keys() | set(sys.stdlib_module_names)
    assert imported(path) <= known, f"{path} imports {sorted(imported(path) - known)}"


def test_a_client_needs_no_more_of_google_than_protobuf() -> None:
    names = {name for path in FILES if path.parts[0] == "latentd" for name in dotted(path)}
    google = {name for name in names if name.startswith("google")}
    assert google and all(name.startswith("google.protobuf") for name in google)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_heavy_imports_have_one_home(path: Path) -> None:
    folder, names = path.parts[0], imported(path)
    if folder not in ("kernels", "benchmarks"):
        assert "triton" not in names
    if folder == "engines":
        for name, homes in ENGINES_OWN.items():
            assert name not in names or path.stem.startswith(homes), f"{path} imports {name}"
    else:
        assert not names & {"tensorrt", "tensorrt_rtx"} or folder == "benchmarks"
    # The oracles of the tests; nothing that serves, exports or trains needs them.
    assert not names & {"diffusers", "transformers"} or folder == "benchmarks"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nobodys_names(path: Path) -> None:
    names = [path.stem, *path.parent.parts]
    tree = ast.parse((ROOT / path).read_text())
    names += [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert not [name for name in names if any(word in name.lower() for word in NOBODYS_NAMES)]


LOADED = """
import importlib, pathlib, sys
for folder in ("latentd", "pipeline", "graphs", "engines", "server"):
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        if path.parts[0] == "engines" and path.stem.startswith(("torch", "cuda", "tensorrt")):
            continue
        importlib.import_module(name)
heavy = {"torch", "onnx", "onnxscript", "safetensors", "transformers", "diffusers", "triton", "model", "export"}
print(*sorted(heavy & {name.split(".")[0] for name in sys.modules}))
"""


def test_a_server_on_a_cpu_loads_no_torch() -> None:
    ran = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []


def test_a_client_loads_nothing_of_the_server() -> None:
    code = "import latentd.__main__, latentd.command, sys; print(*{name.split('.')[0] for name in sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "latentd" in loaded
    assert not loaded & {"numpy", "pipeline", "engines", "server", "tokenizers", "openvino", "torch"}
