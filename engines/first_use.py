"""An artifact from whatever folder a user names: an artifact as it is, a checkpoint exported on first use.

Serving never imports the export stage (it would bring torch): a first export is a process of its own, and its
result is kept under $LATENTD_CACHE by the content of the checkpoint.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

from engines import cache
from engines.artifact import CONFIGS, Artifact, digests, is_artifact, open_artifact
from engines.backend import BackendError
from pipeline.errors import CheckpointError
from pipeline.spec import read_spec

_ROOT = Path(__file__).parent.parent
_running: list[subprocess.Popen[bytes]] = []

log = logging.getLogger("latentd.first_use")


def artifact_of(folder: Path) -> Artifact:
    """The artifact in `folder`, or of it.

    Errors: CheckpointError for a folder that is no model, BackendError when an export is needed and cannot be had.
    """
    if not folder.is_dir():
        raise CheckpointError(f"model {folder} is not a folder; give a checkpoint in diffusers' layout or an artifact")
    folder = folder.resolve()
    if is_artifact(folder):
        return open_artifact(folder)
    read_spec(folder)
    own = cache.cache_folder() / "artifacts" / cache.key(checkpoint=_contents(folder))
    out = own / folder.name
    if is_artifact(out):
        try:
            return open_artifact(out)
        except CheckpointError as error:
            log.warning("exporting again: %s", error)
            shutil.rmtree(own, ignore_errors=True)
    _export(folder, out)
    return open_artifact(out)


def _contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that an export may read, by name."""
    parts = sorted({str(Path(name).parent) for name in CONFIGS})  # the checkpoint's top is one of them, "."
    paths = [
        path
        for part in parts
        for pattern in ("*.json", "*.txt", *(() if part == "." else ("*.safetensors",)))
        for path in sorted((folder / part).glob(pattern))
    ]
    return dict(zip((path.relative_to(folder).as_posix() for path in paths), digests(paths), strict=True))


def stop_exports() -> None:
    """End exports that are under way: the server was told to stop while it loaded."""
    for process in _running:
        process.terminate()


def _export(folder: Path, out: Path) -> None:
    """Into a folder beside `out`, renamed when it is whole: two servers may start at once."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnx") is None:
        raise BackendError(
            f"{folder} is a checkpoint that has not been exported, and exporting needs the extra `export` "
            f"(pip install -e '.[export]'); or export it elsewhere with `make onnx MODEL={folder}`"
        )
    new = out.with_name(f".new-{os.getpid()}")
    try:
        _run([sys.executable, "-W", "ignore", "-m", "export", str(folder), "--out", str(new)])
        try:
            new.rename(out)
        except OSError as error:
            if not is_artifact(out):  # else another process was faster, with the same content
                raise CheckpointError(f"cannot keep the export as {out}: {error}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _run(command: list[str]) -> None:
    """Its output goes to ours, but its last word, when it fails, into the error."""
    with subprocess.Popen(command, cwd=_ROOT, stdout=sys.stderr, stderr=subprocess.PIPE) as process:
        _running.append(process)
        try:
            assert process.stderr
            told = process.stderr.read().decode(errors="replace").strip().splitlines()
        finally:
            _running.remove(process)
    if process.returncode:
        # 1 is an error in words; anything else (a signal) left none.
        ended = f"the export ended with status {process.returncode}"
        raise CheckpointError(told[-1] if told and process.returncode == 1 else ended)
