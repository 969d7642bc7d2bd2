"""SDXL with pictures as conditions: diffusers' img2img, inpainting over four and nine channels, and styles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image

from engines.choice import Choice
from engines.commands.compare import psnr
from engines.model import Beside, Model, load
from engines.preview import Preview
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.conditions.original import Original
from pipeline.errors import CheckpointError
from tests.support.adapters import add_style
from tests.support.clips import ENCODER, make_encoder
from tests.support.diffusers_originals import original_of
from tests.support.diffusers_sdxl import EXACT, Pixels, in_torch, ours, pipeline_of, theirs
from tests.support.sdxl import make_sdxl

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

WHOLE = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that text to image, img2img and inpainting over four channels share, and that has a style adapter."""
    return add_style(make_sdxl(tmp_path_factory.mktemp("sdxl") / "sdxl"))


@pytest.fixture(scope="module")
def plain(folder: Path) -> Model:
    return in_torch(folder)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return in_torch(make_sdxl(tmp_path_factory.mktemp("nine") / "nine", unet={"in_channels": 9}))


def begun(folder: Path, original: Original, **asked: Any) -> Pixels:
    """diffusers' picture that begins with another."""
    more, kind = {"image": Image.fromarray(original.pixels)}, StableDiffusionXLImg2ImgPipeline
    if original.mask is not None:
        height, width = original.mask.shape
        more |= {"mask_image": Image.fromarray(original.mask), "width": width, "height": height}
        kind = StableDiffusionXLInpaintPipeline
    return original.over(theirs(folder, kind, steps=5, **more, **asked))


@pytest.mark.parametrize("kind", [pytest.param("img2img", marks=WHOLE), "four", "nine"])
def test_pictures_to_begin_with(plain: Model, nine: Model, kind: str) -> None:
    model, original = nine if kind == "nine" else plain, original_of(64, 64, masked=kind != "img2img")
    wanted = begun(model.checkpoint.path, original, strength=0.7)
    assert psnr(ours(model, steps=5, original=original, strength=0.7), wanted) >= EXACT
    assert psnr(ours(model, steps=5, original=original, strength=0.5), wanted) < EXACT
    other = replace(original_of(64, 64, masked=kind != "img2img", seed=2), mask=original.mask)
    assert psnr(ours(model, steps=5, original=other, strength=0.7), wanted) < EXACT


@WHOLE
def test_inpainting_from_noise_alone(nine: Model) -> None:
    original = original_of(96, 64, masked=True)
    asked: dict[str, Any] = {"strength": 1.0, "negative_prompt": "dog", "sampler": "euler_a"}
    wanted = begun(nine.checkpoint.path, original, **asked)
    assert psnr(ours(nine, steps=5, original=original, width=96, height=64, **asked), wanted) >= EXACT


@pytest.fixture(scope="module")
def styled(folder: Path) -> Model:
    return load(open_checkpoint(folder), Choice("torch", "f32", threads=1, device="cpu"))


def test_a_style_is_what_diffusers_draws(styled: Model, folder: Path) -> None:
    """ip-adapter_sdxl and ip-adapter_sdxl_vit-h have SD 1.5's layout: tokens as wide as both texts, 70 attentions."""
    picture, other = (original_of(70, 90, seed=seed).pixels for seed in (1, 2))
    pipe, _ = pipeline_of(folder, StableDiffusionXLPipeline)
    (file,) = (folder / "ip_adapter").iterdir()
    pipe.load_ip_adapter(
        folder,
        subfolder="ip_adapter",
        weight_name=file.name,
        image_encoder_folder="./image_encoder",  # with a stroke it is beside the subfolder, not below it
        low_cpu_mem_usage=False,
    )
    pipe.set_ip_adapter_scale(0.6)
    asked = {"negative_prompt": "dog"}
    wanted = theirs(folder, ip_adapter_image=Image.fromarray(picture), **asked)
    assert styled.styles is not None and styled.spec.unet.conditions == ("style", "style_weight", "pooled", "sizes")
    assert psnr(ours(styled, style=styled.styles.of(picture, 0.6), **asked), wanted) >= EXACT
    for style in (None, styled.styles.of(picture, 0.8), styled.styles.of(other, 0.6)):
        assert psnr(ours(styled, style=style, **asked), wanted) < EXACT, "none, another weight, another picture"


@WHOLE
def test_an_encoder_of_another_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    """ip-adapter_sdxl and the vit-h one differ in their image encoders."""
    wide = replace(ENCODER, vision=replace(ENCODER.vision, projection=ENCODER.vision.projection + 8))
    encoder = make_encoder(tmp_path / "wide", spec=wide)
    with pytest.raises(CheckpointError, match="takes embeddings of 24 numbers, and .* gives 32"):
        load(open_checkpoint(folder), Choice("torch", "f32", threads=1, device="cpu"), Beside(encoder=encoder))


def test_previews_have_the_colours_of_the_picture(plain: Model) -> None:
    """The map from latents to colours is fitted through this VAE, whatever its scale."""
    colour_map, factor = Preview(plain.backend).map(), plain.spec.vae.factor
    pictures = [original_of(64, 64, seed=seed).pixels.transpose(2, 0, 1).astype(np.float32) / 255 for seed in (1, 2)]
    small = [each.reshape(3, 64 // factor, factor, 64 // factor, factor).mean((2, 4)) for each in pictures]
    got = [
        colour_map.colours(plain.backend.moments(each * 2 - 1)[:4] * plain.spec.vae.scaling_factor) for each in pictures
    ]
    for one, other in ((0, 1), (1, 0)):
        errors = [float(np.square(got[one] - small[which]).mean()) for which in (one, other)]
        assert errors[0] < errors[1], "nearer to its own picture than to another"
