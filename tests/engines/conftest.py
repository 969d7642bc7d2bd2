from __future__ import annotations

import pytest

from engines.artifact.opened import Artifact
from engines.cpu.torch import TorchBackend
from engines.model import Model
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from pipeline.tokenizer import ClipTokenizer
from tests.support.checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint that torch alone reads."""
    return bare_checkpoint(tmp_path_factory)


def bare_checkpoint(folders: pytest.TempPathFactory, **changes: object) -> Checkpoint:
    return open_checkpoint(make_checkpoint(folders.mktemp("bare") / "bare", **changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def plain(bare: Checkpoint) -> Artifact:
    return plain_artifact(bare)


def plain_artifact(checkpoint: Checkpoint) -> Artifact:
    """Call a checkpoint an artifact, for tests whose plans are stood in for: it has no graphs."""
    return Artifact(checkpoint.path, "0" * 64, checkpoint.spec)


@pytest.fixture(scope="session")
def oracle(bare: Checkpoint) -> Model:
    """`bare` in float32 torch, on the host."""
    return Model(bare, ClipTokenizer(bare.source, bare.spec.text), TorchBackend(bare, threads=1))
