"""Checkpoints that torch alone reads, and artifacts without graphs."""

from __future__ import annotations

import pytest

from engines.artifact.opened import Artifact
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from tests.support.checkpoints import make_checkpoint


def bare_checkpoint(folders: pytest.TempPathFactory, **changes: object) -> Checkpoint:
    return open_checkpoint(make_checkpoint(folders.mktemp("bare") / "bare", **changes))  # type: ignore[arg-type]


def plain_artifact(checkpoint: Checkpoint) -> Artifact:
    """Call a checkpoint an artifact, for tests whose plans are stood in for: it has no graphs."""
    return Artifact(checkpoint.path, "0" * 64, checkpoint.spec)
