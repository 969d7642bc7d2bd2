"""Who may import whom (docs/design.md), read from the sources: also what is imported inside a function."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
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
    "training": {"torch", "numpy", "PIL", "tqdm", "yaml", "tokenizers", "safetensors"},
    "server": {"grpc", "grpc_health", "grpc_reflection", "grpc_status"}
    | {"google", "numpy", "PIL", "prometheus_client", "yaml", "uvicorn", "h11"}
    | {"fastapi", "starlette", "pydantic"}
    | {"opentelemetry"},
}
# In engines/, where each of these may be imported.
ENGINES_OWN = {
    "torch": ("engines/cpu/torch.py", "engines/cuda/", "engines/tensorrt/serve/", "engines/tensorrt/ladder/"),
    "model": ("engines/cpu/torch.py", "engines/cuda/", "engines/tensorrt/serve/"),
    "kernels": ("engines/cuda/", "engines/tensorrt/plugins/", "engines/tensorrt/ladder/"),
    "onnx": ("engines/tensorrt/",),
    "openvino": tuple(f"engines/cpu/{each}.py" for each in ("openvino", "bound", "core", "requests", "tower")),
    "onnxruntime": ("engines/cpu/onnxruntime.py", "engines/tensorrt/types/"),
    "tensorrt": ("engines/tensorrt/",),
    "tensorrt_rtx": ("engines/tensorrt/",),
}
# The rooms, from the ground up: a file imports from its own room and from those before it, wherever in the file.
# A name is a folder or a file, and the most exact one counts; a new file of engines/ or server/ is given its place.
# fmt: off
ROOMS = (
    "latentd", "pipeline", "kernels", "graphs", "model",
    "engines.telemetry", "engines.errors", "engines.seat", "engines.backend", "engines.buffers", "engines.choice",
     "engines.machine", "engines.cache",
    "engines.process", "engines.graphs",
    "engines.artifact", "engines.build", "engines.cpu", "engines.cuda", "engines.clip", "engines.model",
    "engines.preview", "engines.generate",
    "engines.tensorrt.api", "engines.tensorrt.notes", "engines.tensorrt.types", "engines.tensorrt.plugins",
    "engines.tensorrt.build", "engines.tensorrt.serve",
    "engines.tensorrt.ladder", "engines.commands", "engines.__main__", "engines",
    "export",
    "server.errors", "server.limits", "server.events", "server.request", "server.address", "server.caller",
    "server.descriptors", "server.reading", "server.container", "server.upload",
    "server.logs", "server.mailbox", "server.settings", "server.access",
    "server.metrics", "server.wish", "server.job", "server.pace", "server.batching", "server.originals",
    "server.device",
    "server.tracing", "server.service", "server.models", "server.doors",
    "server.app", "server",
    "latentd.__main__",
    "training.errors", "training.recipe", "training.draws", "training.launch", "training.processes", "training.files",
    "training.figures", "training.ops", "training.average", "training.optimizer",
    "training.state", "training.sheet", "training.vocabulary", "training.networks", "training.loop",
    "training.data", "training.batches", "training.draw", "training.phases", "training.assemble", "training.evaluate",
    "training.run", "training.command", "training",
    "demo",
    "benchmarks.memory", "benchmarks.health", "benchmarks.untouched", "benchmarks.random_checkpoint",
    "benchmarks.rows", "benchmarks.genai", "benchmarks.doors",
    "benchmarks.trend", "benchmarks.plots",
    "benchmarks.serving", "benchmarks.loading", "benchmarks.load", "benchmarks.fairness",
    "benchmarks.attack", "benchmarks.conditions",
    "benchmarks.machines.fleet", "benchmarks.machines",
    "benchmarks.gpu.frame", "benchmarks.gpu.subjects",
    "benchmarks.gpu.sections",
    "benchmarks.gpu.warm", "benchmarks",
)
# fmt: on
NOBODYS_NAMES = ("scheduler", "manager", "util", "helper")
# Folders whose names and docstrings are held to WORDLESS and CLAUSES.
WORDED = [
    "latentd",
    "pipeline",
    "graphs",
    "model",
    "kernels",
    "export",
    "engines",
    "server",
    "training",
    "demo",
    "benchmarks",
]
# Participles, which name no thing: what was told, and to whom?
WORDLESS = {"told", "own", "found", "made", "asked"}
# A docstring that begins so names neither what it does nor what it is about.
CLAUSES = re.compile(
    r"(About|After|As|At|Before|Between|By|During|For|From|If|In|Inside|Into|Of|On|Over|So|Than|That|To|Until|When"
    r"|While|With|Within|Without|How|What|Where|Whether|Which|Who|Whose|Why|Its|Their|None|True|False|The same)\b"
)


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


FILES = [path.relative_to(ROOT) for folder in OURS for path in modules(folder)]


def files_of(folder: str) -> list[Path]:
    """A case of each file would last longer than what is asked of it."""
    return [path for path in FILES if path.parts[0] == folder]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


@functools.cache
def dotted(path: Path) -> frozenset[str]:
    """Every name that a file imports, wherever in it, as module.name; also one that it imports by a literal."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {str(part.value) for part in node.args if isinstance(part, ast.Constant)}
    return frozenset(found)


def imported(path: Path) -> set[str]:
    """The first name of each."""
    return {name.split(".")[0] for name in dotted(path)}


def module_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def ours(path: Path) -> set[str]:
    """The modules of ours that a file imports, but itself."""
    found = set()
    for name in dotted(path):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", module_of(path)}


def room_of(module: str) -> str:
    """The most exact of ROOMS that holds a module. Errors: ValueError."""
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len)


def test_the_walk_sees_imports() -> None:
    assert len(FILES) > 60 and Path("latentd/v1/images_pb2.py") in FILES
    assert {"openvino", "numpy", "engines", "graphs", "threading"} <= imported(Path("engines/cpu/openvino.py"))
    assert "export" in imported(Path("export/__main__.py")), "inside a function"


@pytest.mark.parametrize("folder", OURS)
def test_ours(folder: str) -> None:
    for path in files_of(folder):
        others = imported(path) & (OURS.keys() | {"tests", "deploy"}) - {folder}
        allowed = OURS[folder] | EXCEPT.get(path.as_posix(), set())
        assert others <= allowed, f"{path} imports {sorted(others - allowed)}"


@pytest.mark.parametrize("folder", FOREIGN)
def test_foreign(folder: str) -> None:
    known = FOREIGN[folder] | OURS.keys() | set(sys.stdlib_module_names)
    for path in files_of(folder):
        assert imported(path) <= known, f"{path} imports {sorted(imported(path) - known)}"


def test_only_doors_know_the_wire() -> None:
    wires = {
        "server/doors": ("latentd.v1", "grpc", "google"),  # and grpc_health, grpc_status..
        "server/doors/http": ("fastapi", "starlette", "pydantic"),
        "server/tracing": ("opentelemetry",),
    }
    for room, wire in wires.items():
        known = {path for path in FILES if path.parts[0] == "server" and any(n.startswith(wire) for n in dotted(path))}
        assert room in {path.parent.as_posix() for path in known}
        assert all(path.is_relative_to(room) for path in known)
    grpc = {path for path in FILES if path.is_relative_to("server/doors/http") and "grpc" in imported(path)}
    assert not grpc


def test_a_client_needs_no_more_of_google_than_protobuf() -> None:
    google = {name for path in FILES if path.parts[0] == "latentd" for name in dotted(path) if name[:6] == "google"}
    assert google and all(name.startswith("google.protobuf") for name in google)


@pytest.mark.parametrize("folder", OURS)
def test_heavy_imports_have_one_home(folder: str) -> None:
    for path in files_of(folder):
        names = imported(path)
        if folder not in ("kernels", "benchmarks"):
            assert "triton" not in names, path
        if folder == "engines":
            for name, homes in ENGINES_OWN.items():
                assert name not in names or path.as_posix().startswith(homes), f"{path} imports {name}"
        else:
            assert not names & {"tensorrt", "tensorrt_rtx"} or folder == "benchmarks", path
        # The oracles of the tests; nothing that serves, exports or trains needs them.
        assert not names & {"diffusers", "transformers"} or folder == "benchmarks", path


@pytest.mark.parametrize("folder", OURS)
def test_rooms_are_built_on_those_below(folder: str) -> None:
    for path in files_of(folder):
        floor = ROOMS.index(room_of(module_of(path)))
        above = {name for name in ours(path) if ROOMS.index(room_of(name)) > floor}
        assert not above, f"{path}, of {ROOMS[floor]}, imports {sorted(above)}"


def test_no_circle_anywhere() -> None:
    """A package's own file counts as a module of its own: whoever imports a part of it has not asked for all of it."""
    order = list(graphlib.TopologicalSorter({module: ours(path) for module, path in MODULES.items()}).static_order())
    assert len(order) == len(MODULES)


@pytest.mark.parametrize("room", sorted({path.parent for path in FILES}), ids=str)
def test_a_room_can_be_overlooked(room: Path) -> None:
    """Twenty files at most: more, and names begin to do what folders should."""
    assert len([path for path in FILES if path.parent == room and path.name != "__init__.py"]) <= 20


@pytest.mark.parametrize("folder", OURS)
def test_a_file_has_300_lines_or_a_reason(folder: str) -> None:
    for path in files_of(folder):
        text = (ROOT / path).read_text()
        lines = 0 if path.parts[:2] == ("latentd", "v1") else text.count("\n")
        assert lines <= 300 or "Longer than 300 lines: " in text, path


@pytest.mark.parametrize("folder", OURS)
def test_nobodys_names(folder: str) -> None:
    for path in files_of(folder):
        names = [path.stem, *path.parent.parts]
        names += [node.name for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        assert not [name for name in names if any(word in name.lower() for word in NOBODYS_NAMES)], path


def nameless(module: ast.Module) -> list[str]:
    """Return the names in WORDLESS, underscores aside: parameters, attributes, definitions, fields, module names."""
    names = []
    for node in ast.walk(module):
        if isinstance(node, ast.arg):
            names.append(node.arg)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.append(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        if isinstance(node, ast.Module | ast.ClassDef):
            bound = [
                part for line in node.body if isinstance(line, ast.Assign | ast.AnnAssign) for part in ast.walk(line)
            ]
            names += [part.id for part in bound if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]
    return [name for name in names if name.strip("_").lower() in WORDLESS]


def clauses(module: ast.Module) -> list[str]:
    """Return the functions and classes whose docstring begins with one of CLAUSES."""
    nodes = [n for n in ast.walk(module) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    return [node.name for node in nodes if CLAUSES.match(ast.get_docstring(node) or "")]


def test_the_walk_sees_words() -> None:
    source = """
TOLD: int = 1
made, y = 1, 2
class Found:
    "Of a thing."
    own: int
    asked = 1
async def _told(made, *asked, **found):
    "The same again."
    self.made_ = self._own = made
    found = 1  # a local name is its function's
def good():
    "Offers something."
"""
    module = ast.parse(source)
    names = ["TOLD", "made", "Found", "own", "asked", "_told", "made", "asked", "found", "made_", "_own"]
    assert sorted(nameless(module)) == sorted(names)
    assert clauses(module) == ["Found", "_told"]


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parts[0] in WORDED and "v1" not in path.parts], ids=str
)
def test_names_are_nouns_and_docstrings_have_verbs(path: Path) -> None:
    assert not nameless(tree(path))
    assert not clauses(tree(path))


TESTS = [path.relative_to(ROOT) for path in modules("tests")]


def spelt(text: str) -> set[str]:
    """Return the modules of tests/ that a text imports, as a child's code does, or names as a child's job."""
    return set(re.findall(r"\b(?:from|import)\s+(tests[\w.]+)", text)) | set(re.findall(r"(tests\.[\w.]+):\w", text))


def test_what_tests_share_is_in_tests_support() -> None:
    """Nobody imports a test's own file, nor a conftest."""
    for tests_own in ("test_b", "conftest"):
        assert spelt(f"x = 1\nfrom tests.a.{tests_own} import c") == {f"tests.a.{tests_own}"}
        assert spelt(f"tests.{tests_own}:job") == {f"tests.{tests_own}"}
    for path in TESTS:
        texts = [node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)]
        names = dotted(path).union(*(spelt(text) for text in texts if isinstance(text, str)))
        parts = {part for name in names if name.startswith("tests.") for part in name.split(".")}
        assert not [part for part in parts if part.startswith("test_") or part == "conftest"], path


LOADED = """
import importlib, pathlib, sys
for folder in ("latentd", "pipeline", "graphs", "engines", "server"):
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        heavy = name.startswith(("engines.cuda.", "engines.tensorrt.", "engines.cpu.torch"))
        if heavy and name not in ("engines.cuda.gpu", "engines.cuda.choices", "engines.tensorrt.api"):
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
