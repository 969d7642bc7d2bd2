"""An artifact from whatever folder a user names: an artifact as it is, a checkpoint exported on first use.

Serving never imports the export stage (it would bring torch): a first export is a process of its own, and its
result is kept under $LATENTD_CACHE by the content of the checkpoint.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from engines import cache
from engines.artifact import Artifact, digests, is_artifact, open_artifact
from engines.backend import BackendError
from pipeline.errors import CheckpointError
from pipeline.spec import read_spec

_ROOT = Path(__file__).parent.parent
_running: list[subprocess.Popen[bytes]] = []


def artifact_of(folder: Path) -> Artifact:
    """Errors: CheckpointError for a folder that is no model, BackendError when an export is needed and cannot be had."""
    if not folder.is_dir():
        raise CheckpointError(f"model {folder} is not a folder; give a checkpoint in diffusers' layout or an artifact")
    folder = folder.resolve()
    if is_artifact(folder):
        return open_artifact(folder)
    read_spec(folder)
    files = sorted(
        path
        for pattern in ("*.json", "*.txt", "*.safetensors")
        for path in (*folder.glob(pattern), *folder.glob(f"*/{pattern}"))
    )
    contents = dict(zip((path.relative_to(folder).as_posix() for path in files), digests(files), strict=True))
    out = cache.cache_folder() / "artifacts" / cache.key(checkpoint=contents) / folder.name
    if not is_artifact(out):
        _export(folder, out)
    return open_artifact(out)


def stop_exports() -> None:
    """End exports that are under way: the server was told to stop while it loaded."""
    for process in _running:
        process.terminate()


def _export(folder: Path, out: Path) -> None:
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnx") is None:
        raise BackendError(
            f"{folder} is a checkpoint that has not been exported, and exporting needs the extra `export` "
            f"(pip install -e '.[export]'); or export it elsewhere with `make onnx MODEL={folder}`"
        )
    command = [sys.executable, "-W", "ignore", "-m", "export", str(folder), "--out", str(out)]
    with subprocess.Popen(command, cwd=_ROOT, stdout=sys.stderr, stderr=subprocess.PIPE) as process:
        _running.append(process)
        assert process.stderr
        told = process.stderr.read().decode(errors="replace").strip()
    _running.remove(process)
    if process.returncode:
        raise CheckpointError(told.splitlines()[-1] if told else f"the export ended with status {process.returncode}")
