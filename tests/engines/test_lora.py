"""Pictures with LoRAs are diffusers': one and several, at any weight, both formats, the text encoder too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from numpy.typing import NDArray

from engines.choice import Choice
from engines.commands.compare import psnr
from engines.generate import generate
from engines.model import Beside, Model, load
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.loras.layers import merged, unet_layers
from tests.support.checkpoints import VELOCITY, make_checkpoint
from tests.support.loras import configured, drawn_by, tensors_of, write
from tests.support.trajectories import THEIRS

ASKED: dict[str, Any] = {
    "prompt": "a red apple of the cat",
    "negative_prompt": "blue",
    "seed": 11,
    "steps": 3,
    "guidance": 4.0,
}
SAMPLER = "ddim"
# What each file is made with; ranks from 4 to 128.
FILES: dict[str, dict[str, Any]] = {
    "kohya": {"rank": 4, "style": "kohya", "alpha": 2.0, "seed": 1},
    "peft": {"rank": 128, "style": "peft", "seed": 2},
    "diffusers": {"rank": 8, "style": "diffusers", "seed": 3},
    "processor": {"rank": 16, "style": "processor", "seed": 4, "dtype": np.float32},
    "unet": {"rank": 64, "style": "kohya", "alpha": 64.0, "seed": 5, "text": False, "only": "attn"},
    "text": {"rank": 4, "style": "peft", "seed": 6, "only": "text_model", "size": 0.6},
}
CHOICES = {
    "kohya": [("kohya", 1.0)],
    "peft, alpha in its metadata": [("peft", 1.0)],
    "diffusers' old names": [("diffusers", 0.8)],
    "processors": [("processor", 1.0)],
    "attentions of the UNet": [("unet", 1.0)],
    "text encoder alone": [("text", 1.0)],
    "below zero": [("kohya", -0.7)],
    "two": [("kohya", 0.9), ("diffusers", 0.5)],
    "three, one below zero": [("peft", 0.4), ("unet", -0.5), ("kohya", 1.3)],
}


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = VELOCITY if request.param == "sd2" else {}
    folder = make_checkpoint(tmp_path_factory.mktemp("models") / "model", **options)
    (loras := folder.parent / "loras").mkdir()
    spec = open_checkpoint(folder).spec
    for name, made in FILES.items():
        # Alpha is not the rank.
        config = configured(128, {"unet": 96, "text_encoder": 96}) if name == "peft" else None
        write(loras / f"{name}.safetensors", tensors_of(spec, **made), config)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(open_checkpoint(folder), Choice("onnxruntime"), Beside(loras=folder.parent / "loras"))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    pipe: Any = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    scheduler, switches = THEIRS[SAMPLER]
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **switches)
    return pipe


def drawn(model: Model, loras: list[tuple[str, float]]) -> NDArray[np.uint8]:
    assert model.loras is not None
    lora = model.loras.lora(model.loras.chosen(loras)) if loras else None
    return generate(model, **ASKED, sampler=SAMPLER, lora=lora)


def test_these_models_have_layers_of_either_kind(model: Model) -> None:
    """Those that add B A to their weight, and those beside which the LoRA's product stands."""
    cheaper, layers = merged(model.spec.unet), unet_layers(model.spec.unet)
    assert cheaper and sum("attn" in layer and layer not in cheaper for layer in layers) > 2


# PEFT's, where a pipeline is given a second LoRA.
@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_pictures_are_diffusers(model: Model, theirs: Any, folder: Path, choice: str) -> None:
    if model.spec.unet.linear_projection and choice not in ("kohya", "two", "text encoder alone"):
        pytest.skip("where the projections are linear, those that differ by that")
    loras = CHOICES[choice]
    wanted, got = drawn_by(theirs, folder.parent / "loras", loras, **ASKED), drawn(model, loras)
    assert psnr(got, wanted) >= 45
    assert psnr(drawn(model, []), wanted) < 35, "a LoRA that changes nothing proves nothing"
    name, weight = loras[0]
    assert psnr(drawn(model, [(name, weight + 0.25), *loras[1:]]), wanted) < 45, "nor does one at any weight"
