"""A style from a picture, against diffusers' StableDiffusionPipeline.load_ip_adapter, and in company."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from engines.choice import Choice
from engines.generate import latents_of
from engines.model import Model, load
from pipeline.arrays import F32, Pixels
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.conditions.style import Style
from tests.support.adapters import make_styled
from tests.support.trajectories import THEIRS

LEAST, OTHER = 45.0, 40.0  # dB: where diffusers draws the same, and where something else is drawn
PROMPT, NEGATIVE = "the red apple", "blue"
WIDE: dict[str, Any] = {  # attends everywhere, two layers deep: the order of the file's numbers matters
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
    "transformer_layers_per_block": 2,
}


def psnr(got: F32, wanted: F32) -> float:
    """Of latents, whose peak is their largest number: stricter than of their pictures."""
    assert got.shape == wanted.shape
    return float(20 * np.log10(np.abs(wanted).max() / max(1e-12, np.sqrt(np.square(got - wanted).mean()))))


def picture(seed: int = 3) -> Pixels:
    """Blotches, so that a resize keeps something of them."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((70, 90), Image.Resampling.BILINEAR))


class Theirs:
    def __init__(self, folder: Path) -> None:
        pipe: Any = StableDiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
        (file,) = (folder / "ip_adapter").iterdir()
        pipe.load_ip_adapter(
            folder,
            subfolder="ip_adapter",
            weight_name=file.name,
            image_encoder_folder="./image_encoder",  # with a stroke it is beside the subfolder, not below it
            low_cpu_mem_usage=False,
        )
        pipe.set_progress_bar_config(disable=True)
        self._pipe, self._config = pipe, pipe.scheduler.config

    @functools.cache  # noqa: B019 (it lives as long as the tests of a module)
    def __call__(self, weight: float, guidance: float, sampler: str = "dpmpp_2m") -> F32:
        scheduler, switches = THEIRS[sampler]
        self._pipe.scheduler = scheduler.from_config(self._config, **switches)
        self._pipe.set_ip_adapter_scale(weight)
        drawn = self._pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            ip_adapter_image=Image.fromarray(picture()),
            num_inference_steps=5,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(11),
            output_type="latent",
        )
        return drawn.images[0].numpy()


def ours(model: Model, style: Style | None, guidance: float, sampler: str = "dpmpp_2m") -> F32:
    options = {"steps": 5, "guidance": guidance, "seed": 11, "sampler": sampler}
    return latents_of(model, PROMPT, NEGATIVE, style=style, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_styled(tmp_path_factory.mktemp("models") / "styled")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Theirs:
    return Theirs(folder)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch"])
def test_a_style_is_what_diffusers_draws(folder: Path, theirs: Theirs, backend: str) -> None:
    model = load(open_checkpoint(folder), Choice(backend, "f32", threads=1, device="cpu"))
    assert model.styles is not None
    drawn: dict[float, F32] = {}
    for guidance, weight in ((4.0, 0.35), (4.0, 1.0), (4.0, 1.6), (1.0, 0.8)):
        drawn[weight] = got = ours(model, model.styles.of(picture(), weight), guidance)
        assert psnr(got, theirs(weight, guidance)) >= LEAST, (guidance, weight)
    plain = ours(model, None, 4.0)
    assert (ours(model, model.styles.of(picture(), 0.0), 4.0) == plain).all(), "no weight is no style, to the bit"
    other = ours(model, model.styles.of(picture(4), 1.0), 4.0)
    for wrong in (plain, other, drawn[0.35], drawn[1.6]):
        assert psnr(wrong, drawn[1.0]) < OTHER, "without a style, of another picture, of another weight"


def test_layers_are_numbered_as_diffusers_lists_them(tmp_path: Path) -> None:
    folder = make_styled(tmp_path / "wide", unet=WIDE)
    model = load(open_checkpoint(folder), Choice("torch", threads=1, device="cpu"))
    assert model.styles is not None
    wanted = Theirs(folder)(0.8, 3.0, "euler")
    assert psnr(ours(model, model.styles.of(picture(), 0.8), 3.0, "euler"), wanted) >= LEAST
