"""The artifact that TensorRT's plans are built from: the one that a user names, or one exported on first use.

An exported artifact is kept under $LATENTD_CACHE by the content of its checkpoint and by its graphs, so one that an
older latentd made is not taken for this one's. Only plans need one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from engines.artifact.opened import Artifact, is_artifact, open_artifact
from engines.cache import entries, eviction, lock
from engines.graphs import seal_of
from engines.process.exporting import check_extra, run_export
from graphs import NETWORKS
from pipeline.checkpoint.opened import Checkpoint
from pipeline.errors import CheckpointError

log = logging.getLogger("latentd.first_use")


def artifact_of(checkpoint: Checkpoint) -> Artifact:
    """Return the artifact in the checkpoint's folder, or else the one that the cache has or gets now.

    Errors: CheckpointError, BackendError when an export is needed and cannot be had, DiskError when it cannot be kept.
    """
    if is_artifact(checkpoint.path):
        return open_artifact(checkpoint.path)
    configs = {name: hashlib.sha256(data).hexdigest() for name, data in checkpoint.small_files().items()}
    seals = {network: seal_of(network, checkpoint.spec) for network in NETWORKS}
    key = entries.key(weights=checkpoint.weights.digest(), configs=configs, name=checkpoint.id, graphs=seals)
    place = entries.cache_folder() / "artifacts" / key
    if artifact := _kept(place, checkpoint.id, log.debug):
        return artifact
    check_extra(f"plans are built from an exported artifact, and exporting {checkpoint.path}")
    prediction = checkpoint.spec.schedule.prediction
    flags = [] if checkpoint.path.is_dir() else ["--prediction", prediction]
    with lock.alone(place, log.info):
        if artifact := _kept(place, checkpoint.id, log.warning):  # another process was faster
            return artifact
        with entries.fresh(place) as new:
            out = new.folder / checkpoint.id
            run_export([str(checkpoint.path), "--out", str(out), *flags], [new.number])
            new.keep()
    eviction.evict()
    return open_artifact(place / checkpoint.id)


def _kept(place: Path, name: str, say: Callable[[str, Exception], None]) -> Artifact | None:
    """Return the artifact that the cache has at `place`, and keep it from eviction while this process lives."""
    if not lock.use(place) or not is_artifact(place / name):
        return None
    try:
        artifact = open_artifact(place / name)
    except CheckpointError as error:
        say("exporting again: %s", error)
        lock.let_go(place)
        return None
    eviction.touch(place)
    return artifact
