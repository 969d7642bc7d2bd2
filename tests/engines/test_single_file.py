"""A single file served: read where it lies, and drawn as diffusers draws it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from engines.choice import Choice
from engines.commands.compare import psnr
from engines.generate import generate
from engines.model import load
from pipeline.checkpoint.opened import model_id, open_checkpoint
from pipeline.errors import CheckpointError
from tests.support.original import make_folder, write_original

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


def test_it_draws_what_diffusers_draws(folder: Path, file: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(file)
    from_file: Any = StableDiffusionPipeline.from_single_file
    pipe = from_file(str(file), config=str(folder), local_files_only=True, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)  # as the settings beside the file ask for
    # Both read the published vocabulary: the folder's own is a test's.
    for name, data in checkpoint.small_files().items():
        if name.startswith("tokenizer/"):
            (tmp_path / name.removeprefix("tokenizer/")).write_bytes(data)
    pipe.tokenizer = type(pipe.tokenizer).from_pretrained(tmp_path)
    model = load(checkpoint, Choice("openvino", "f32"))

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
        return generate(model, "a photo of a cat", seed=seed), np.round(drawn.images[0] * 255).astype(np.uint8)

    (ours, theirs), (_, other) = pictures(1), pictures(2)
    assert ours.shape == (32, 32, 3) and theirs.std() > 0.05 * 255
    assert psnr(ours, theirs) > 45 > 30 > psnr(ours, other)


def test_its_name_is_the_files(file: Path) -> None:
    assert open_checkpoint(file).id == model_id(file) == "small.v2"
    link = file.with_name("renamed.safetensors")  # its settings are those beside the name that was given
    link.symlink_to(file)
    assert open_checkpoint(link, "v_prediction").id == "renamed"
    with pytest.raises(CheckpointError, match=r"renamed\.safetensors is a .* does not tell what it predicts"):
        open_checkpoint(link)


@pytest.mark.parametrize(
    ("name", "prediction", "words"),
    [
        ("folder", "epsilon", "prediction epsilon is for single files"),
        ("old.ckpt", "auto", "is a pickle by its name"),
        ("none.safetensors", "auto", "is not there, and nothing is downloaded"),
        (
            "none",
            "auto",
            "none is not there, and nothing is downloaded; give a folder in diffusers' layout or a .safetensors file",
        ),
    ],
)
def test_refusals(folder: Path, name: str, prediction: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder.with_name(name), prediction)
