"""Folders as diffusers and transformers themselves save them today: what is drawn from each is their own picture."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextModelWithProjection

from engines.commands.compare import psnr
from engines.cpu.torch import TorchBackend
from engines.generate import generate
from engines.model import Model
from model.weights import check_weights
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.checkpoint.weights import folder_weights
from pipeline.noise import standard_normal
from pipeline.spec import read_spec
from pipeline.tokenizer import ClipTokenizer
from tests.support.checkpoints import make_checkpoint

EXACT, OTHER = 55.0, 40.0  # dB
PROMPT = "the blue cat"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("made") / "made")
    (folder / "latentd.json").unlink()
    return folder


def loaded(folder: Path, cls: Any = StableDiffusionPipeline, **parts: object) -> Any:
    pipe = cls.from_pretrained(folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(folder: Path, prompt: str = PROMPT, cls: Any = StableDiffusionPipeline, **options: Any) -> np.ndarray:
    """diffusers' picture of a folder with its own scheduler, from the noise of seed 3."""
    pipe, spec = loaded(folder, cls), read_spec(folder)
    noise = standard_normal(3, spec.latent_shape(spec.defaults.width, spec.defaults.height))
    options = {"num_inference_steps": 5, "guidance_scale": 5.0} | options
    latents = torch.from_numpy(np.asarray(noise))
    picture = pipe(
        prompt, latents=latents, output_type="np", width=spec.defaults.width, height=spec.defaults.height, **options
    )
    return (picture.images[0] * 255).round().astype(np.uint8)


def ours(folder: Path, prompt: str = PROMPT, **options: Any) -> np.ndarray:
    """The model's default sampler, whatever that is."""
    checkpoint = open_checkpoint(folder)
    model = Model(checkpoint, ClipTokenizer(folder, checkpoint.spec.text), TorchBackend(checkpoint, threads=1))
    return generate(model, prompt, **{"seed": 3, "steps": 5, "guidance": 5.0} | options)


def same(folder: Path, prompt: str = PROMPT) -> np.ndarray:
    check_weights(read_spec(folder), folder_weights(folder))
    picture, wanted = ours(folder, prompt), theirs(folder, prompt)
    assert wanted.std() > 20, "a flat picture would prove nothing"
    assert psnr(picture, wanted) > EXACT
    return picture


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({}, 3),
        ({"variant": "fp16"}, 3),
        ({"max_shard_size": "60KB"}, 9),
        ({"variant": "fp16", "max_shard_size": "60KB"}, 9),
    ],
    ids=["whole", "fp16", "shards", "fp16 shards"],
)
def test_every_form_that_save_pretrained_has(made: Path, tmp_path: Path, options: dict[str, Any], files: int) -> None:
    pipe: Any = StableDiffusionPipeline.from_pretrained(made, dtype=torch.float16, safety_checker=None)
    pipe.save_pretrained(tmp_path, **options)
    written = [path.name for path in tmp_path.rglob("*.safetensors")]
    assert len(written) >= files and all(("fp16" in name) == ("variant" in options) for name in written)
    assert {path.name for path in (tmp_path / "tokenizer").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert read_spec(tmp_path) == read_spec(made)
    check_weights(read_spec(tmp_path), folder_weights(tmp_path))
    assert (ours(tmp_path) == same(made)).all()


def test_another_topology(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "made", kind="sd2", vae={"shift_factor": None})
    StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float16, safety_checker=None).save_pretrained(
        tmp_path / "saved"
    )
    assert read_spec(tmp_path / "saved") == read_spec(folder)
    same(tmp_path / "saved")


def test_a_hub_cache_of_links(made: Path, tmp_path: Path) -> None:
    """snapshots/revision/part/file, each a link to blobs/digest; the snapshot itself linked to from elsewhere."""
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    for number, path in enumerate(path for path in made.rglob("*") if path.is_file()):
        blob, link = tmp_path / f"models--a--b/blobs/{number:040x}", snapshot / path.relative_to(made)
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        link.symlink_to(os.path.relpath(blob, link.parent))
    (tmp_path / "mine").symlink_to(snapshot)
    assert read_spec(tmp_path / "mine") == read_spec(made)
    assert (ours(tmp_path / "mine") == ours(made)).all()


def test_an_img2img_pipelines_folder(made: Path, tmp_path: Path) -> None:
    loaded(made, StableDiffusionImg2ImgPipeline).save_pretrained(tmp_path)
    assert "Img2Img" in (tmp_path / "model_index.json").read_text()
    same(tmp_path)


def test_a_latent_consistency_pipelines_folder(tmp_path: Path) -> None:
    """Everything is left to its defaults: the sampler, four steps, the guidance that goes into the UNet."""
    folder = make_checkpoint(tmp_path / "made", unet={"time_cond_proj_dim": 32})
    scheduler = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
    loaded(folder, LatentConsistencyModelPipeline, scheduler=scheduler).save_pretrained(tmp_path / "saved")
    spec = read_spec(tmp_path / "saved")
    assert (spec.defaults.sampler, spec.defaults.steps, spec.defaults.guidance) == ("lcm", 4, 8.5)
    for steps in (1, 4):  # with more, theirs draws noise of its own
        options = {"num_inference_steps": steps, "guidance_scale": 8.5}
        generator = torch.Generator().manual_seed(3)
        noise = standard_normal(3, spec.latent_shape(24, 24), draws=steps)
        _rewound(generator, noise.shape[1:])
        wanted = theirs(tmp_path / "saved", cls=LatentConsistencyModelPipeline, generator=generator, **options)
        assert psnr(ours(tmp_path / "saved", steps=steps, guidance=None), wanted) > EXACT


def _rewound(generator: torch.Generator, shape: tuple[int, ...]) -> None:
    """Behind the initial latents, which are given."""
    torch.randn((1, *shape), generator=generator)


def test_a_text_encoder_with_its_projection(made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its head is no part of the model: the picture is that of the encoder without it, and the log says so."""
    pipe = loaded(made)
    pipe.save_pretrained(tmp_path)
    config = pipe.text_encoder.config
    config.projection_dim = 24
    whole = CLIPTextModelWithProjection(config)
    whole.load_state_dict(
        {f"text_model.{k.removeprefix('text_model.')}": v for k, v in pipe.text_encoder.state_dict().items()},
        strict=False,
    )
    whole.save_pretrained(tmp_path / "text_encoder")
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "CLIPTextModelWithProjection"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    picture = ours(tmp_path)
    assert "text_encoder/config.json: the text encoder's projection is left out" in caplog.text
    assert (picture == ours(made)).all()


@pytest.mark.parametrize(
    "schedule",
    [{"steps_offset": 0}, {"clip_sample": True, "set_alpha_to_one": True}, {"steps_offset": 5, "clip_sample": True}],
    ids=str,
)
def test_fields_that_diffusers_pipeline_corrects(made: Path, tmp_path: Path, schedule: dict[str, Any]) -> None:
    pipe = loaded(made)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **schedule)
    pipe.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    assert schedule.items() <= written.items()
    same(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"mid_block_type": None}, {"mid_block_type": None, "attention_head_dim": 8, "layers_per_block": 2}],
    ids=str,
)
def test_a_unet_without_a_middle_block(made: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    """As BK-SDM-Tiny's: UNet2DConditionModel builds none."""
    config = dict(UNet2DConditionModel.load_config(made / "unet")) | change
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config(config)
    with torch.no_grad():
        for weights in unet.parameters():
            if weights.ndim > 1:
                weights.normal_(0, 1.2 * weights[0].numel() ** -0.5)
    pipe = loaded(made, unet=unet)
    pipe.save_pretrained(tmp_path)
    assert not read_spec(tmp_path).unet.middle and read_spec(made).unet.middle
    same(tmp_path)


@pytest.mark.parametrize(("version", "side"), [("0.6.0", 64), ("0.8.1", 64), ("0.9.0.dev0", 12), ("0.42.1", 12)])
def test_an_old_configs_sample_size(made: Path, tmp_path: Path, version: str, side: int) -> None:
    """diffusers takes what is less than 64 in a config of before 0.9.0 for 64; a list it leaves alone."""
    loaded(made).save_pretrained(tmp_path)
    path = tmp_path / "unet/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"_diffusers_version": version}))
    assert loaded(tmp_path).unet.config.sample_size == side
    assert read_spec(tmp_path).unet.sample_size == side and read_spec(tmp_path).defaults.width == 2 * side
    path.write_text(json.dumps(config | {"_diffusers_version": version, "sample_size": [12, 12]}))
    assert read_spec(tmp_path).unet.sample_size == 12


def _alone(tokens: list[str]) -> Callable[[Any, Path], None]:
    def invert(pipe: Any, here: Path) -> None:
        for number, token in enumerate(tokens):
            vector = torch.randn(48, generator=torch.Generator().manual_seed(number)) * 0.5
            pipe.load_textual_inversion({token: vector[None]}, token=token)

    return invert


def _of_three_vectors(pipe: Any, here: Path) -> None:
    vectors = torch.randn(3, 48, generator=torch.Generator().manual_seed(5)) * 0.5
    save_file({"emb_params": vectors}, here / "cat-toy.safetensors")
    pipe.load_textual_inversion(str(here / "cat-toy.safetensors"), token="<cat-toy>")


@pytest.mark.parametrize(
    ("invert", "prompt"),
    [
        (_alone(["<toy>"]), "a <toy> in the apple"),
        (_alone(["<toy>", "Zed", "redapple"]), "zed of REDAPPLE, <TOY>the <toy>"),
        (_of_three_vectors, "a blue <cat-toy>, red"),
    ],
    ids=["one", "several, unlike in case", "of three vectors"],
)  # fmt: skip
def test_textual_inversions_saved_into_the_folder(
    made: Path, tmp_path: Path, invert: Callable[[Any, Path], None], prompt: str
) -> None:
    pipe = loaded(made)
    invert(pipe, tmp_path)
    pipe.save_pretrained(tmp_path / "saved")
    again = loaded(tmp_path / "saved")
    wanted = again.tokenizer(again.maybe_convert_prompt(prompt, again.tokenizer)).input_ids
    ids = ClipTokenizer(tmp_path / "saved", read_spec(tmp_path / "saved").text).encode(prompt).ids
    assert ids[: len(wanted)].tolist() == wanted and max(wanted) >= len(pipe.tokenizer.get_vocab()) - 3
    picture = same(tmp_path / "saved", prompt)
    assert psnr(picture, ours(made, prompt)) < OTHER
