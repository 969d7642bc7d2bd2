"""What many tests share: a small exported checkpoint, and a cache that is thrown away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from engines.artifact import Artifact
from engines.model import Model


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines are cached for the session only; no setting of the user's environment reaches a test."""
    for name in [name for name in os.environ if name.startswith("LATENTD_")]:
        del os.environ[name]
    folder = tmp_path_factory.mktemp("cache")
    os.environ["LATENTD_CACHE"] = str(folder)
    # Beside ONNX Runtime's and OpenVINO's threads torch's own only spin: 76 s instead of 10 on two cores.
    torch.set_num_threads(1)
    return folder


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An exported checkpoint whose numbers are not Stable Diffusion's: epsilon, 16 tokens, 3 latent channels."""
    from export.artifact import export
    from tests.checkpoints import make_checkpoint

    checkpoint = make_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    return export(checkpoint, say=lambda line: None)


@pytest.fixture(scope="session")
def model(artifact: Artifact) -> Model:
    """On OpenVINO in f32, which every CPU has."""
    from engines.model import load

    return load(artifact, "openvino", "f32")
