"""A single file served: exported on first use by a process of its own, and drawn as diffusers draws it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from engines.artifact import Artifact, has_safety_checker
from engines.first_use import artifact_of, model_id
from engines.generate import generate
from engines.model import load
from export.artifact import export
from pipeline.errors import CheckpointError
from tests.checkpoints import make_checkpoint
from tests.export.original import make_folder, write_original

DRAWN = {"steps": 3, "guidance": 3.0, "sampler": "ddim", "width": 32, "height": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(
        tmp_path_factory.mktemp("served") / "folder", "sd2", prediction="v_prediction", levels=2, layers=1
    )


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    path = write_original(folder, "sd2", folder.with_name("small.v2.safetensors"), levels=2, layers=1)
    path.with_name("small.v2.latentd.json").write_text(json.dumps({"prediction": "v_prediction", **DRAWN}))
    return path


@pytest.fixture(scope="module")
def artifact(file: Path) -> Artifact:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # as tests/conftest.py does for torch in this process
        return artifact_of(file)


def test_it_draws_what_diffusers_draws(artifact: Artifact, folder: Path, file: Path) -> None:
    from_file: Any = StableDiffusionPipeline.from_single_file
    pipe = from_file(str(file), config=str(folder), local_files_only=True, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)  # as the settings beside the file ask for
    # Both read the published vocabulary: the folder's own is a test's.
    pipe.tokenizer = type(pipe.tokenizer).from_pretrained(artifact.folder / "tokenizer")
    model = load(artifact, "openvino", "f32")

    def pictures(seed: int) -> tuple[np.ndarray, np.ndarray]:
        drawn = pipe(
            "a photo of a cat",
            num_inference_steps=3,
            guidance_scale=3.0,
            width=32,
            height=32,
            output_type="np",
            generator=torch.Generator().manual_seed(seed),
        )
        return generate(model, "a photo of a cat", seed=seed) / 255.0, drawn.images[0]

    (ours, theirs), (_, other) = pictures(1), pictures(2)
    assert ours.shape == (32, 32, 3) and theirs.std() > 0.05
    assert psnr(ours, theirs) > 45 > 30 > psnr(ours, other)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(a - b).mean()))


def test_its_name_and_its_second_use(artifact: Artifact, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert artifact.id == model_id(file) == "small.v2"
    monkeypatch.setattr("engines.first_use._export", lambda *_: pytest.fail("exported again"))
    link = file.with_name("renamed.safetensors")  # by content: but the model's name, and its settings, are the file's
    assert artifact_of(file).digest == artifact.digest
    link.symlink_to(file)
    assert model_id(link) == "renamed"


@pytest.mark.parametrize(
    ("name", "prediction", "words"),
    [
        ("folder", "epsilon", "prediction epsilon is for single files"),
        ("old.ckpt", "auto", "is a pickle by its name"),
        ("none.safetensors", "auto", "does not exist"),
        ("none", "auto", "is not a folder"),
    ],
)
def test_refusals(folder: Path, name: str, prediction: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        artifact_of(folder.with_name(name), prediction)


def test_what_the_export_refuses_is_told(folder: Path, tmp_path: Path) -> None:
    file = write_original(folder, "sd2", tmp_path / "asked.safetensors", levels=2, layers=1)
    with pytest.raises(CheckpointError, match=r"asked\.safetensors is a .* does not tell what it predicts"):
        artifact_of(file)


def test_a_safety_checker_is_said_aloud(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path)
    assert not has_safety_checker(checkpoint)
    index = json.loads((checkpoint / "model_index.json").read_bytes())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (checkpoint / "model_index.json").write_text(json.dumps(index))
    assert has_safety_checker(checkpoint)
    told: list[str] = []

    def say(line: str) -> None:
        told.append(line)
        raise InterruptedError  # before the export's work begins

    with pytest.raises(InterruptedError):
        export(checkpoint, say=say)
    assert told == ["warning: the checkpoint's safety checker is not run: pictures are delivered as they come"]
