"""The examples of docs/api.md and the first of docs/conditions.md, run as they stand, by a server on other ports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from engines.choice import Choice
from engines.model import Model, load
from pipeline.checkpoint.opened import open_checkpoint
from server.app import Server
from tests.support.serving import serving

ROOT = Path(__file__).parent.parent
TRITONCLIENT = Path(sys.prefix, "tritonclient")
EXAMPLES = re.findall(r"^```(python|sh)\n(.*?)^```$", (ROOT / "docs/api.md").read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    default = model.spec.defaults
    with serving(model, http_port=0, sizes=((default.width, default.height), (64, 64))) as server:
        yield server


def test_there_is_one_for_each_client() -> None:
    assert len(EXAMPLES) == 10
    texts = [text for _, text in EXAMPLES]
    words = {"from latentd": 1, 'latentd "': 2, "curl -s ": 1, "from openai": 2, "images.edit(": 1}
    for word, times in {**words, "import webuiapi": 2, "img2img(": 1, "curl -sN ": 2, "import tritonclient": 1}.items():
        assert sum(word in text for text in texts) == times, word


@pytest.mark.parametrize(("language", "text"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_it_runs(language: str, text: str, server: Server, tmp_path: Path) -> None:
    if "curl" in text and not shutil.which("curl"):
        pytest.skip("no curl on this machine")
    for port, ours in (("8000", server.http_port), ("8001", server.grpc_port)):
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ours}").replace(f"port={port}", f"port={ours}")
    text = re.sub(r"^latentd ", f"{sys.executable} -m latentd ", text)
    command = [sys.executable, "-c", text] if language == "python" else ["bash", "-eo", "pipefail", "-c", text]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if "tritonclient" in text:  # it wants an older protobuf than the server
        if not TRITONCLIENT.exists():
            pytest.skip("make test installs tritonclient")
        environment["PYTHONPATH"] = str(TRITONCLIENT)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pictures = [Image.open(path) for path in tmp_path.glob("*.png")]
    if "-sN" in text:
        assert [line for line in done.stdout.splitlines() if line.startswith("event: done")]
    else:
        assert pictures and all(picture.size in ((24, 24), (64, 64)) for picture in pictures)


def test_the_first_examples_of_conditions_run(tmp_path: Path) -> None:
    """By the demo model, in one folder, one after the other: what one draws the next begins with."""
    text = (ROOT / "docs/conditions.md").read_text()
    shell = re.findall(r"(?:^    \.venv/bin/latentd .*\n)+", text, re.M)[0].replace(".venv/bin/latentd", "latentd")
    python = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)[0]
    assert shell.count("--init penguin.png") == python.count('init_image="penguin.png"') == 1
    ours = f'latentd() {{ "{sys.executable}" -m latentd "$@"; }}\n'
    with serving(load(open_checkpoint(ROOT / "demo/small-things"), Choice("openvino"))) as server:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LATENTD_SERVER": f"127.0.0.1:{server.grpc_port}"}
        for command in (["bash", "-euc", ours + shell], [sys.executable, "-c", python]):
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    drawn = {path.name for path in tmp_path.iterdir()}
    kept = {name for name in drawn if name.startswith("rocket-")}
    assert drawn - kept == {f"{name}.png" for name in ("both", "fox", "inky", "penguin", "without")} and len(kept) == 2
