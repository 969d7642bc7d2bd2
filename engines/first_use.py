"""An artifact from whatever a user names: an artifact as it is, a checkpoint (folder or file) exported on first use.

Serving never imports the export stage (it would bring torch): a first export is a process of its own, and its
result is kept under $LATENTD_CACHE by the content of the checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

from engines import cache, disk
from engines.artifact import CONFIGS, Artifact, digests, is_artifact, open_artifact
from engines.backend import BackendError
from engines.disk import DiskError
from engines.lock import locked
from pipeline.errors import CheckpointError
from pipeline.files import check_links
from pipeline.single_file import check_single_file, is_single_file, settings_path
from pipeline.spec import read_spec

_ROOT = Path(__file__).parent.parent
_running: list[subprocess.Popen[bytes]] = []

log = logging.getLogger("latentd.first_use")


def model_id(model: Path) -> str:
    """What clients call it: the folder's name, or the file's without its ending."""
    return model.stem if is_single_file(model) else model.resolve().name


def artifact_of(folder: Path, prediction: str = "auto") -> Artifact:
    """The artifact in `folder`, or of it; `folder` may be a single file, and then `prediction` may be needed.

    Errors: CheckpointError for what is no model, BackendError when an export is needed and cannot be had, DiskError
    when it cannot be kept.
    """
    if is_single_file(folder):
        return _artifact_of_file(folder.absolute(), prediction)
    if prediction != "auto":
        raise CheckpointError(f"prediction {prediction} is for single files; {folder} has its own scheduler config")
    if not os.path.isdir(folder):
        raise CheckpointError(f"model {folder} is not a folder; give a checkpoint in diffusers' layout or an artifact")
    folder = folder.resolve()
    if is_artifact(folder):
        return open_artifact(folder)
    read_spec(folder)
    return _kept(cache.key(checkpoint=_contents(folder)), folder, folder.name)


def _artifact_of_file(model: Path, prediction: str) -> Artifact:
    check_single_file(model)
    contents = digests([path for path in (model, settings_path(model)) if os.path.lexists(path)])
    return _kept(cache.key(file=contents, prediction=prediction), model, model_id(model), "--prediction", prediction)


def _kept(key: str, model: Path, name: str, *flags: str) -> Artifact:
    """The artifact that the cache has of `model`, exported now where it has none or a damaged one."""
    own = cache.cache_folder() / "artifacts" / key
    out = own / name
    if artifact := _opened(out):
        return artifact
    with locked(own / ".lock", lambda: log.info("waiting: another process exports %s", model)) as lock:
        if artifact := _opened(out):
            return artifact
        disk.remove(out)
        _export(model, out, lock, *flags)
    return open_artifact(out)


def _opened(out: Path) -> Artifact | None:
    if not is_artifact(out):
        return None
    try:
        return open_artifact(out)
    except CheckpointError as error:
        log.warning("exporting again: %s", error)
        return None


def _contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that an export may read, by name. Errors: CheckpointError."""
    parts = sorted({str(Path(name).parent) for name in CONFIGS})  # the checkpoint's top is one of them, "."
    paths = [
        path
        for part in parts
        for pattern in ("*.json", "*.txt", *(() if part == "." else ("*.safetensors",)))
        for path in sorted((folder / part).glob(pattern))
    ]
    names = [path.relative_to(folder).as_posix() for path in paths]
    for name in names:
        check_links(folder, name)
    return dict(zip(names, digests(paths), strict=True))


def stop_exports() -> None:
    """End exports that are under way: the server was told to stop while it loaded."""
    for process in _running:
        process.terminate()


def _export(folder: Path, out: Path, lock: int, *flags: str) -> None:
    """Into a folder beside `out`, renamed when it is whole.

    The export holds `lock` too: if we are killed it goes on, and who comes next waits for it and takes its result.
    """
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnx") is None:
        raise BackendError(
            f"{folder} is a checkpoint that has not been exported, and exporting needs the extra `export` "
            f"(pip install -e '.[export]'); or export it elsewhere with `make onnx MODEL={folder} OUT=dir`"
        )
    new = out.with_name(".new")
    try:
        if _opened(new) is None:
            _run([sys.executable, "-W", "ignore", "-m", "export", str(folder), "--out", str(new), *flags], lock)
        disk.replace(new, out)
    finally:
        with contextlib.suppress(DiskError):
            disk.remove(new)


def _run(command: list[str], lock: int) -> None:
    """Its output goes to ours, but its last word, when it fails, into the error."""
    with subprocess.Popen(command, cwd=_ROOT, stdout=sys.stderr, stderr=subprocess.PIPE, pass_fds=[lock]) as process:
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
