"""The wheel in an environment of its own, outside the clone: it serves, its children run, nothing of it stays.

What it needs besides is borrowed from the environment of these tests by a path file, so that nothing is downloaded but
the build's own setuptools.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LARGEST = 35 << 20  # bytes


def run(*command: object, **options: object) -> str:
    """Run a command that must succeed; its output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, names):  # what git has, not what lies about
        if name.startswith("tests/") or not (ROOT / name).exists():
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel installed; the folder of its programs."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    run(sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet", "--no-deps", wheel)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def test_what_it_carries(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"latentd", next(top for top in tops if top.endswith(".dist-info"))}, "no generic name"
    assert wheel.stat().st_size <= LARGEST
    carried = {name.removeprefix("latentd/rooms/") for name in names}
    for folder in ("pipeline", "graphs", "model", "kernels", "engines", "export", "server"):
        committed = run(
            "git", "ls-files", f"{folder}/*.py", f"{folder}/*.onnx", f"{folder}/*.json", f"{folder}/*.gz", cwd=ROOT
        )
        assert set(committed.split()) <= carried, set(committed.split()) - carried
    assert {*run("git", "ls-files", "web", cwd=ROOT).split()} <= carried
    assert "protos/latentd/v1/images.proto" in carried and "demo/small-things/unet/config.json" in carried


@pytest.fixture
def served(environment: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a server that was started outside the clone."""
    command = [
        environment / "latentd",
        "serve",
        "--http-port",
        "0",
        "--grpc-port",
        "0",
        "--metrics-port",
        "0",
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout and server.stderr
        greeting = server.stdout.readline()
        match = re.search(r"gRPC (\S+),", greeting)
        if match is None:
            server.kill()
            pytest.fail(server.stderr.read())
        yield match[1]
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def test_it_serves_and_draws(environment: Path, served: str, tmp_path: Path) -> None:
    run(
        environment / "latentd",
        "red apple, color style",
        "-o",
        "a.png",
        "--steps",
        "2",
        "--server",
        served,
        cwd=tmp_path,
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "small-things" in run(environment / "latentd", "--list-models", "--server", served, cwd=tmp_path)


def test_a_client_imports_none_of_the_rooms(environment: Path, tmp_path: Path) -> None:
    code = (
        "import latentd, sys; print([name for name in ('server', 'engines', 'numpy') if name in sys.modules], sys.path)"
    )
    printed = run(environment / "python", "-c", code, cwd=tmp_path)
    assert printed.startswith("[]") and "rooms" not in printed
    names = "server", "engines", "model", "graphs"
    code = f"from importlib.util import find_spec; print([name for name in {names} if find_spec(name)])"
    assert run(environment / "python", "-I", "-c", code, cwd=tmp_path).strip() == "[]"


def test_its_children_run(environment: Path, tmp_path: Path) -> None:
    """The export stage, as engines/process/exporting.py starts it for an architecture that ships without a graph."""
    (site,) = environment.parent.glob("lib/python*/site-packages")
    rooms = site / "latentd/rooms"
    code = f"""
import sys; sys.path.insert(0, {str(rooms)!r})
from pathlib import Path
from dataclasses import replace
from engines.graphs import graph_of
from pipeline.checkpoint.opened import open_checkpoint
spec = open_checkpoint(Path({str(rooms / "demo/small-things")!r})).spec
print(len(graph_of("text_encoder", replace(spec, text=replace(spec.text, eps=3e-6)))))
"""
    cache = {**os.environ, "LATENTD_CACHE": str(tmp_path / "cache")}
    assert int(run(environment / "python", "-c", code, cwd=tmp_path, env=cache)) > 5_000
    assert len([*(tmp_path / "cache/graphs").glob("text_encoder-*.onnx")]) == 1


def test_uninstalled_it_leaves_nothing(environment: Path, served: str) -> None:
    """Last, as it takes the environment apart; `served` has run meanwhile, and left what a run leaves."""
    (site,) = environment.parent.glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "--python", environment / "python", "uninstall", "--quiet", "--yes", "latentd")
    left = [path for path in site.iterdir() if "latentd" in path.name]
    assert not left, left
