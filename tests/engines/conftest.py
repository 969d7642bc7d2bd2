from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.artifact import Artifact
from engines.model import Model
from engines.torch import TorchBackend
from pipeline.spec import read_spec
from pipeline.tokenizer import ClipTokenizer
from tests.checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A checkpoint that torch alone reads: nothing was exported."""
    return bare_artifact(tmp_path_factory)


def bare_artifact(folders: pytest.TempPathFactory, **changes: object) -> Artifact:
    return artifact_at(make_checkpoint(folders.mktemp("bare") / "bare", **changes))  # type: ignore[arg-type]


def artifact_at(folder: Path) -> Artifact:
    """Any checkpoint folder, for backend torch."""
    spec = read_spec(folder)
    return Artifact(folder, "0" * 64, spec, np.zeros((3, spec.vae.latent_channels + 1), np.float32))


@pytest.fixture(scope="session")
def oracle(bare: Artifact) -> Model:
    """`bare` in float32 torch, on the host."""
    return Model(bare, ClipTokenizer(bare.folder, bare.spec.text), TorchBackend(bare, threads=1))
