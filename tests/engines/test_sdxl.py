"""SDXL: the pictures of diffusers' StableDiffusionXLPipeline, and what else there is of two texts and six sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.choice import Choice
from engines.commands.compare import psnr
from engines.cpu.torch import TorchBackend
from engines.cuda.backend import CudaBackend
from engines.cuda.kernels import plain_kernels
from engines.generate import generate, latents_of
from engines.model import Model, load
from engines.seat import Sitting
from model.weights import check_weights
from pipeline.arrays import to_pixels
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.conditions.sizes import AS_IT_IS, Sizes
from pipeline.conditions.text import encoded_prompt
from pipeline.noise import standard_normal
from pipeline.prompt import read_prompts
from pipeline.samplers import table
from pipeline.spec import read_spec
from pipeline.tokenizer import tokenizer_of
from tests.support.diffusers_sdxl import ASKED, EXACT, in_torch, ours, pipeline_of, theirs
from tests.support.sdxl import change, make_sdxl, write_configs, write_sdxl_file

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

WHOLE = pytest.mark.exhaustive
SAMPLERS = ["ddim", "euler_a", "dpmpp_2m", *(pytest.param(name, marks=WHOLE) for name in ("euler", "unipc", "heun"))]


@dataclass(frozen=True)
class Made:
    folder: Path
    model: Model  # in torch, f32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = make_sdxl(tmp_path_factory.mktemp("sdxl") / "sdxl")
    return Made(folder, in_torch(folder))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_pictures_of_diffusers(made: Made, sampler: str) -> None:
    wanted = theirs(made.folder, sampler=sampler, negative_prompt="the blue cat")
    assert psnr(ours(made.model, sampler=sampler, negative_prompt="the blue cat"), wanted) >= EXACT


@pytest.mark.parametrize(
    "asked",
    [
        {},  # no negative prompt: zeros
        {"prompt": ""},
        {"prompt": "a photo of the blue cat!!! " * 20, "negative_prompt": "dog, " * 40},
        {"width": 96, "height": 64, "guidance": 1.0},
        pytest.param({"width": 64, "height": 96, "negative_prompt": "dog"}, marks=WHOLE),
    ],
    ids=["no negative", "empty", "long", "wide", "tall"],
)
def test_prompts_and_sizes(made: Made, asked: dict[str, Any]) -> None:
    assert psnr(ours(made.model, **asked), theirs(made.folder, **asked)) >= EXACT


def test_anything_else_fails_the_same_comparison(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = theirs(made.folder)
    assert psnr(ours(made.model), wanted) >= EXACT
    for wrong in (
        {"seed": 4},
        {"sizes": Sizes(original=(64, 65))},
        {"sizes": Sizes(crop=(0, 8))},
        {"sizes": Sizes(target=(56, 64))},
        {"negative_prompt": " "},
        {"prompt": "a red apple"},
        {"clip_skip": 1},
    ):
        assert psnr(ours(made.model, **wrong), wanted) < EXACT, wrong
    encode = made.model.backend.encode_text
    neighbour = encode(made.model.tokenizer.encode("a blue apple!").ids).pooled
    monkeypatch.setattr(
        made.model.backend, "encode_text", lambda *asked, **lora: replace(encode(*asked, **lora), pooled=neighbour)
    )
    assert psnr(ours(made.model), wanted) < EXACT, "the pooled text"


def test_sizes_are_said_as_diffusers_says_them(made: Made) -> None:
    """There height comes first, and the corner is from above and from the left."""
    told = {"original_size": (40, 80), "crops_coords_top_left": (16, 8), "target_size": (100, 50)}
    sizes = Sizes(original=(80, 40), crop=(8, 16), target=(50, 100))
    assert psnr(ours(made.model, sizes=sizes), theirs(made.folder, **told)) >= EXACT


@WHOLE
def test_layers_that_are_left_out(made: Made) -> None:
    assert made.model.spec.skips == 1  # the first tower has three layers
    assert psnr(ours(made.model, clip_skip=1), theirs(made.folder, clip_skip=1)) >= EXACT


@WHOLE
def test_an_empty_negative_prompt_where_the_folder_wants_none(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "encoded"
    folder.mkdir()
    for path in made.folder.iterdir():
        (folder / path.name).symlink_to(path) if path.is_dir() else (folder / path.name).write_bytes(path.read_bytes())
    change(folder, "model_index.json", force_zeros_for_empty_prompt=False)
    wanted = theirs(folder)
    assert psnr(ours(in_torch(folder)), wanted) >= EXACT > psnr(ours(made.model), wanted)


@pytest.mark.parametrize("backend", ["openvino", pytest.param("onnxruntime", marks=WHOLE)])
def test_graphs_draw_what_torch_draws(made: Made, backend: str) -> None:
    model = load(made.model.checkpoint, Choice(backend, "f32", threads=1))
    for asked in ({"negative_prompt": "dog", "sizes": Sizes(original=(32, 48))}, {"clip_skip": 1, "long_prompt": True}):
        asked = {"prompt": "a red apple! " * 30, **asked}
        assert psnr(ours(model, **asked), ours(made.model, **asked)) >= EXACT


def test_a_single_file_is_the_same_checkpoint(made: Made, tmp_path: Path) -> None:
    file = open_checkpoint(write_sdxl_file(made.folder, tmp_path / "sdxl.safetensors"))
    folder = made.model.checkpoint
    assert file.weights.digest() == folder.weights.digest()
    assert (file.spec.text, file.spec.text_2, file.spec.vae) == (folder.spec.text, folder.spec.text_2, folder.spec.vae)
    assert replace(file.spec.unet, sample_size=16) == folder.spec.unet and file.spec.zero_negative
    assert (file.spec.defaults.width, file.spec.defaults.guidance) == (1024, 5.0)
    check_weights(file.spec, file.weights)
    model = Model(file, tokenizer_of(file.source, file.spec), TorchBackend(file, threads=1))
    texts = [each.encode_text(model.tokenizer.encode("a cat").ids) for each in (model.backend, made.model.backend)]
    assert (texts[0].context == texts[1].context).all() and texts[0].pooled is not None
    assert (texts[0].pooled == texts[1].pooled).all(), "the projection lies turned in the file"


def test_the_tokenizers_differ_in_padding_and_in_what_pads(made: Made) -> None:
    """As published, "!" is a token of its own to the second one: three of them are one token to the first."""
    first, second = made.model.tokenizer.encode("cat!!! dog").ids
    assert first[:6].tolist() == [49406, 2368, 995, 1929, 49407, 49407]
    assert second[:8].tolist() == [49406, 2368, 0, 0, 0, 1929, 49407, 0]
    for tokenizer, name in zip(made.model.tokenizer.each, ("tokenizer", "tokenizer_2"), strict=True):
        ids = getattr(pipeline_of(made.folder)[0], name)("cat!!! dog", padding="max_length", max_length=77)["input_ids"]
        assert tokenizer.encode("cat!!! dog").ids.tolist() == ids


def test_weights_and_chunks_are_of_each_encoder(made: Made) -> None:
    """ComfyUI's formula for each, side by side; the whole text's embedding is the first chunk's, unweighted."""
    model = made.model
    (plain,), (prompt,) = (
        read_prompts(model.tokenizer, ["!!! (cat:1.5) " + "dog " * 80], weighted=weighted, long=True)
        for weighted in (False, True)
    )
    (empty,) = read_prompts(model.tokenizer, [""])
    assert prompt.chunks == 2 and prompt.ids.shape == (2, 2, 77)
    got, bare = (encoded_prompt(each, model.backend.encode_text) for each in (prompt, empty))
    (words,) = read_prompts(model.tokenizer, ["!!! cat " + "dog " * 80], long=True)
    text = encoded_prompt(words, model.backend.encode_text)
    wanted = text.context.copy()
    for at, columns in ((2, slice(None, 64)), (4, slice(64, None))):  # the cat stands behind one token, or three
        wanted[at, columns] = bare.context[at, columns] + 1.5 * (text.context[at, columns] - bare.context[at, columns])
    np.testing.assert_allclose(got.context, wanted, atol=1e-5)
    assert np.abs(got.context - text.context).max() > 0.05 and plain.chunks == 2
    assert got.pooled is not None and text.pooled is not None and (got.pooled == text.pooled).all()


@pytest.mark.parametrize("pixels", ["fast", pytest.param("exact", marks=WHOLE)])
def test_seats_on_the_device_hold_their_own_text_and_sizes(made: Made, pixels: str) -> None:
    """The captured step over CPU tensors: three pictures that differ in all of it are what each is alone."""
    model, size = made.model, (64, 64)
    backend = CudaBackend(made.model.checkpoint, "f32", 1, pixels=pixels, device="cpu", kernels=plain_kernels())
    stepper = backend.stepper(*size, seats=3, steps=4)
    asked: list[dict[str, Any]] = [
        {"prompt": "a red apple", "negative_prompt": "dog", "sizes": Sizes(original=(32, 32)), "seed": 1},
        {"prompt": "a red apple", "guidance": 1.0, "sizes": Sizes(crop=(8, 0)), "seed": 1},
        {"prompt": "cat", "seed": 2},
    ]
    for seat, one in enumerate(asked):
        one = ASKED | {"negative_prompt": "", "sizes": AS_IT_IS} | one
        texts = [one["prompt"], one["negative_prompt"]][: 2 if one["guidance"] > 1 else 1]
        prompts = read_prompts(model.tokenizer, texts, zero_negative=True)
        given = [encoded_prompt(prompt, backend.encode_text) for prompt in prompts]
        sizes = one["sizes"].inputs(model.spec.unet, *size)
        sitting = Sitting(
            table(model.spec.schedule, "ddim", one["steps"]),
            standard_normal(one["seed"], model.spec.latent_shape(*size)),
            given[0].context,
            given[1].context if len(given) == 2 else None,
            one["guidance"],
            beside=[text.beside | sizes for text in given],
        )
        stepper.sit(seat, sitting)
    for _ in range(ASKED["steps"]):
        stepper.step([0, 1, 2])
    pictures = [to_pixels(backend.decode(stepper.latents(seat))) for seat in range(3)]
    wanted = [to_pixels(model.backend.decode(latents_of(model, **ASKED | one))) for one in asked]
    for seat in range(3):
        assert psnr(pictures[seat], wanted[seat]) >= EXACT, seat
        assert psnr(pictures[seat], wanted[(seat + 1) % 3]) < EXACT
    denoised = generate(replace(model, backend=backend), **ASKED | asked[0])  # type: ignore[arg-type]
    assert psnr(denoised, wanted[0]) >= EXACT


@WHOLE
@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_half_precision_keeps_a_text(made: Made, precision: str) -> None:
    """The kernels' plain forms project the time in each step; beside float16 the decoder is in float32."""
    backend = CudaBackend(made.model.checkpoint, precision, 1, pixels="exact", device="cpu", kernels=plain_kernels())
    got = generate(replace(made.model, backend=backend), **ASKED)  # type: ignore[arg-type]
    assert psnr(got, ours(made.model)) >= 25


def test_a_spec_is_what_the_configs_say(made: Made, tmp_path: Path) -> None:
    write_configs(tmp_path)
    spec = read_spec(tmp_path)
    assert spec == replace(made.model.spec, schedule=spec.schedule)
