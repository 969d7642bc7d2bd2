"""model_index.json: which pipelines and parts are read, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest

from pipeline.checkpoint import index
from pipeline.errors import CheckpointError
from pipeline.spec import read_spec
from tests.support.checkpoints import make_checkpoint

INDEX = "model_index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path)


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def remarks(folder: Path) -> list[str]:
    told: list[str] = []
    read_spec(folder, told.append)
    return told


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_spec(folder)
    return str(caught.value)


@pytest.mark.parametrize("name", [*index._PIPELINES, *index._DISTILLED, *index._LED])
def test_pipelines_of_text_to_image_networks(folder: Path, name: str) -> None:
    spec = read_spec(folder)
    change(folder / INDEX, _class_name=name)
    again = read_spec(folder)
    assert (again.text, again.unet, again.vae, again.schedule) == (spec.text, spec.unet, spec.vae, spec.schedule)
    assert [name in line for line in remarks(folder)] == [True] * (name in index._LED)


# They exist, or did: a community's, and one that diffusers has dropped.
_ELSEWHERE = {
    "StableDiffusionInpaintPipelineLegacy",
    "StableDiffusionKDiffusionPipeline",
    "StableDiffusionLongPromptWeightingPipeline",
}


def test_their_names_are_those_of_diffusers() -> None:
    known = {*index._PIPELINES, *index._XL, *index._DISTILLED, *index._LED, *index._XL_LED}
    assert {name for name in known if not hasattr(diffusers, name)} <= _ELSEWHERE


def test_every_other_pipeline_of_diffusers_is_refused_by_name(folder: Path) -> None:
    known = {*index._PIPELINES, *index._XL, *index._DISTILLED, *index._LED, *index._XL_LED}
    others = [name for name in dir(diffusers) if name.endswith("Pipeline") and name not in known]
    assert len(others) > 150
    for name in others:
        change(folder / INDEX, _class_name=name)
        assert f'{folder / INDEX}: _class_name is "{name}"; latentd does StableDiffusionPipeline' in refusal(folder)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("vae", ["diffusers", "AutoencoderTiny"]),
        ("vae", ["diffusers", "AsymmetricAutoencoderKL"]),
        ("vae", ["diffusers", "ConsistencyDecoderVAE"]),
        ("vae", [None, None]),
        ("vae", "AutoencoderKL"),
        ("unet", ["diffusers", "UNetMotionModel"]),
        ("text_encoder", ["transformers", "T5EncoderModel"]),
        ("tokenizer", ["transformers", "BertTokenizer"]),
        ("controlnet", ["diffusers", "ControlNetModel"]),
        ("text_encoder_2", ["transformers", "CLIPTextModelWithProjection"]),
        ("depth_estimator", ["transformers", "DPTForDepthEstimation"]),
    ],
)
def test_other_parts_are_named(folder: Path, part: str, named: object) -> None:
    change(folder / INDEX, **{part: named})
    assert f"{folder / INDEX}: {part} is {json.dumps(named)}; latentd does " in refusal(folder)


@pytest.mark.parametrize(
    "beside",
    [
        {"safety_checker": None, "feature_extractor": None, "image_encoder": None},
        {"safety_checker": [None, None], "controlnet": [None, None], "requires_safety_checker": True},
        {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]},
        {"feature_extractor": ["transformers", "CLIPFeatureExtractor"]},
        {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]},
        {"tokenizer": ["transformers", "CLIPTokenizerFast"], "_name_or_path": "somebody/something"},
    ],
)
def test_what_stands_beside_the_picture_may_be_named_or_null(folder: Path, beside: dict[str, object]) -> None:
    spec = read_spec(folder)
    change(folder / INDEX, **beside)
    assert read_spec(folder) == spec and remarks(folder) == []


def test_an_index_that_names_no_parts(folder: Path) -> None:
    spec = read_spec(folder)
    (folder / INDEX).write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert read_spec(folder) == spec
    change(folder / "vae/config.json", _class_name="AutoencoderTiny")
    assert f'{folder / "vae/config.json"}: _class_name is "AutoencoderTiny"; latentd does AutoencoderKL' in refusal(
        folder
    )


@pytest.mark.parametrize("kind", ["latent consistency", "LCM scheduler", "neither"])
@pytest.mark.parametrize("embedded", [True, False])
def test_distilled_models_have_their_pipelines_defaults(tmp_path: Path, kind: str, embedded: bool) -> None:
    """diffusers' LatentConsistencyModelPipeline: 4 steps, guidance 8.5 into the UNet. Without that: unguided."""
    scheduler = "DDIMScheduler" if kind == "neither" else "LCMScheduler"
    folder = make_checkpoint(tmp_path, scheduler=scheduler, unet={"time_cond_proj_dim": 32} if embedded else {})
    (folder / "latentd.json").unlink()
    if kind == "latent consistency":
        change(folder / INDEX, _class_name="LatentConsistencyModelPipeline")
    own = read_spec(folder).defaults
    wanted = ("ddim", 25, 7.5) if kind == "neither" else ("lcm", 4, 8.5 if embedded else 1.0)
    assert (own.sampler, own.steps, own.guidance) == wanted
