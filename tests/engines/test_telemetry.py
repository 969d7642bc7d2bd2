"""Nothing leaves the machine, and nothing is written to HOME: of this process, and of those that it starts."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latentd import Client

ROOT = Path(__file__).parent.parent.parent
# Runs in every Python process that inherits PYTHONPATH: writes down, and forbids, each address beyond this machine.
SPY = """
import os, sys

def spy(event, arguments):
    if event == "urllib.Request":
        there = arguments[0]
    elif event == "socket.getaddrinfo":
        there = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        there = arguments[1][0]
    else:
        return
    if there not in (None, "127.0.0.1", "localhost", "::1"):
        with open(os.environ["SPY_LOG"], "a") as log:
            log.write(f"{there}\\n")
        raise OSError("forbidden here")

sys.addaudithook(spy)
"""


class Watched:
    """A home, a folder for temporary files, and the log of what was to leave."""

    def __init__(self, folder: Path) -> None:
        self.home, self.temporary, self._log = folder / "home", folder / "tmp", folder / "log"
        spy = folder / "spy"
        for made in (self.home, self.temporary, spy):
            made.mkdir()
        (spy / "sitecustomize.py").write_text(SPY)
        # Not os.environ: CI=true would keep both packages quiet by themselves.
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": f"{spy}{os.pathsep}{ROOT}",
            "SPY_LOG": str(self._log),
            "LATENTD_CACHE": str(folder / "cache"),
        }

    def run(self, code: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    @property
    def sent(self) -> list[str]:
        return self._log.read_text().split() if self._log.exists() else []

    @property
    def written(self) -> list[str]:
        return sorted(str(path) for folder in (self.home, self.temporary) for path in folder.rglob("*"))


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_the_spy_sees_what_openvino_sends_by_itself(watched: Watched) -> None:
    """If this fails, a newer OpenVINO no longer needs the fence."""
    watched.run("import openvino")
    assert any("google-analytics.com" in there for there in watched.sent)
    assert any("openvino_ga_cid" in path for path in watched.written)


SESSION = """
from pathlib import Path
graph = next(Path("graphs").glob("text_encoder-*.onnx"))
session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
"""


def test_onnxruntime_knows_the_variable() -> None:
    """Not run without it, for its sender is no Python, and nobody could stop it. A newer one may have another name."""
    found = importlib.util.find_spec("onnxruntime")
    assert found is not None and found.origin is not None
    (library,) = (Path(found.origin).parent / "capi").glob("onnxruntime_pybind11_state*.so")
    assert b"\0ORT_DISABLE_TELEMETRY\0" in library.read_bytes()


@pytest.mark.parametrize(
    "code",
    [
        "import engines.cpu.openvino",
        "import engines.cpu.bound",
        "from engines.build.makers import BUILDERS; import openvino",
        "import engines.cpu.onnxruntime, onnxruntime" + SESSION,
        "import export.parity, onnxruntime" + SESSION,
        "import tokenizers, grpc, grpc.aio, PIL.Image, prometheus_client, yaml",
    ],
)
def test_an_import_sends_and_writes_nothing(code: str, watched: Watched) -> None:
    watched.run(code)
    assert (watched.sent, watched.written) == ([], [])


def test_the_users_own_word_does_not_switch_it_on(watched: Watched) -> None:
    watched.environment["ORT_DISABLE_TELEMETRY"] = "0"
    (watched.home / "intel").mkdir()
    (watched.home / "intel" / "openvino_telemetry").write_text("1")  # consent, given to other programs
    before = watched.written
    watched.run("import engines.cpu.openvino, engines.cpu.onnxruntime, onnxruntime" + SESSION)
    assert (watched.sent, watched.written) == ([], before)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_server_and_its_children_send_and_write_nothing(backend: str, watched: Watched) -> None:
    arguments = ["--http-port", "off", "--grpc-port", "0", "--metrics-port", "0", "--seats", "1", "--backend", backend]
    with subprocess.Popen(
        [sys.executable, "-m", "server", *arguments],
        cwd=ROOT,
        env=watched.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        try:
            assert started.stdout is not None
            address = started.stdout.readline().partition("gRPC ")[2].partition(",")[0]
            with Client(address) as client:
                assert len(client.generate("a red apple", steps=1)) == 1
            started.send_signal(signal.SIGTERM)
            assert started.wait(30) == 0
        finally:
            started.kill()
    assert (watched.sent, watched.written) == ([], [])


def test_a_child_of_the_server_begins_with_the_fence(watched: Watched) -> None:
    """As `python -m engines.process.apart` does, which compiles large networks."""
    watched.run("import engines.process.apart, openvino")
    assert (watched.sent, watched.written) == ([], [])
