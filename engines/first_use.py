"""An artifact from whatever a user names: an artifact as it is, a checkpoint (folder or file) exported on first use.

Serving never imports the export stage (it would bring torch): a first export is a process of its own, and its
result is kept under $LATENTD_CACHE by the content of the checkpoint.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from engines import cache, lock, room
from engines.artifact import CONFIGS, OPTIONAL_CONFIGS, Artifact, digests, is_artifact, open_artifact
from engines.backend import BackendError
from engines.tether import tether
from pipeline.checkpoint.single_file import check_single_file, is_single_file, settings_path
from pipeline.errors import CheckpointError
from pipeline.files import check_links
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
    return _kept(cache.key(checkpoint=_contents(folder), name=folder.name), folder, folder.name)


def _artifact_of_file(model: Path, prediction: str) -> Artifact:
    check_single_file(model)
    contents = digests([path for path in (model, settings_path(model)) if os.path.lexists(path)])
    key = cache.key(file=contents, prediction=prediction, name=model_id(model))
    return _kept(key, model, model_id(model), "--prediction", prediction)


def _kept(key: str, model: Path, name: str, *flags: str) -> Artifact:
    """The artifact that the cache has of `model`, exported now where it has none or a damaged one."""
    own = cache.cache_folder() / "artifacts" / key
    if artifact := _found(own, name, log.debug):
        return artifact
    with lock.alone(own, log.info):
        if artifact := _found(own, name, log.warning):  # another process was faster
            return artifact
        with cache.fresh(own) as new:
            _export(model, new.folder / name, new.number, *flags)
            new.keep()
    room.evict()
    return open_artifact(own / name)


def _found(own: Path, name: str, say: Callable[[str, Exception], None]) -> Artifact | None:
    """What the cache has, kept from eviction for as long as this process lives."""
    if not lock.use(own) or not is_artifact(own / name):
        return None
    try:
        artifact = open_artifact(own / name)
    except CheckpointError as error:
        say("exporting again: %s", error)
        lock.let_go(own)
        return None
    room.touch(own)
    return artifact


def _contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that an export may read, by name. Errors: CheckpointError."""
    # The checkpoint's top is one of them, ".".
    parts = sorted({str(Path(name).parent) for name in (*CONFIGS, *OPTIONAL_CONFIGS)})
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


def _export(folder: Path, out: Path, held: int, *flags: str) -> None:
    """By a process that inherits `held`, the lock on what it writes into: nobody sweeps that away while it lives.

    It ends with this one: an orphan would work on for minutes, for nobody.
    """
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("onnx") is None:
        raise BackendError(
            f"{folder} is a checkpoint that has not been exported, and exporting needs the extra `export` "
            f"(pip install -e '.[export]'); or export it elsewhere with `make onnx MODEL={folder} OUT=dir`"
        )
    _run([sys.executable, "-W", "ignore", "-m", "export", str(folder), "--out", str(out), *flags], held)


def _run(command: list[str], held: int) -> None:
    """Its output goes to ours, but its last word, when it fails, into the error."""
    with (
        tether() as (end, environment),
        subprocess.Popen(
            command,
            cwd=_ROOT,
            env=environment,
            stdout=sys.stderr,
            stderr=subprocess.PIPE,
            pass_fds=[held, end],
        ) as process,
    ):
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
