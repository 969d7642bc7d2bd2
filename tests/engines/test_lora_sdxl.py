"""LoRAs of SDXL: the pictures of diffusers, each text encoder by itself, the same in graphs and in company."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from numpy.typing import NDArray

from engines.choice import Choice
from engines.commands.compare import psnr
from engines.cuda.backend import CudaBackend
from engines.cuda.kernels import plain_kernels
from engines.generate import generate
from engines.model import Beside, Model, load
from engines.seat import Sitting
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.conditions.sizes import AS_IT_IS, Sizes
from pipeline.conditions.text import encoded_prompt
from pipeline.errors import InvalidRequest
from pipeline.loras.lora import Lora
from pipeline.loras.shelf import Shelf
from pipeline.noise import standard_normal
from pipeline.prompt import read_prompts
from server.device.contexts import Contexts
from tests.support.checkpoints import make_checkpoint
from tests.support.company import SEATS, drawn
from tests.support.comparing import error
from tests.support.loras import Tensors, configured, drawn_by, tensors_of, write
from tests.support.requests import conditions_of, latent_shape, random_request, table_of
from tests.support.sdxl import make_sdxl
from tests.support.trajectories import THEIRS

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning",  # diffusers' own
    "ignore:Already found a `peft_config` attribute",  # PEFT's, where a pipeline is given a second LoRA
)

EXACT = 45.0  # dB
WHOLE = pytest.mark.exhaustive
PROMPT = "a red apple of the cat"
ASKED: dict[str, Any] = {"prompt": PROMPT, "negative_prompt": "blue", "seed": 11, "steps": 2, "guidance": 4.0}
# What each file is made with.
FILES: dict[str, dict[str, Any]] = {
    "unet": {"rank": 8, "style": "original", "alpha": 4.0, "seed": 1, "text": False},
    "whole": {"rank": 4, "style": "original", "alpha": 2.0, "seed": 2},
    "peft": {"rank": 16, "style": "peft", "seed": 3},
    "diffusers": {"rank": 8, "style": "diffusers", "seed": 4},
    "kohya": {"rank": 4, "style": "kohya", "seed": 5},
    "first": {"rank": 4, "style": "kohya", "seed": 6, "only": "text_model", "size": 0.6},
    "second": {"rank": 4, "style": "peft", "seed": 7, "only": "text_encoder_2", "size": 0.6},
}
CHOICES: dict[str, list[tuple[str, float]]] = {
    "the UNet alone": [("unet", 1.0)],
    "two with both text encoders, one below zero": [("whole", -0.7), ("peft", 0.5)],
}
MORE: dict[str, list[tuple[str, float]]] = {
    "both text encoders too": [("whole", 1.0)],
    "two": [("whole", 0.8), ("peft", 0.5)],
    "below zero": [("whole", -0.7)],
    "diffusers' old names": [("diffusers", 1.0)],
    "diffusers' names of blocks": [("kohya", 1.0)],
    "the first text encoder": [("first", 1.0)],
    "the second text encoder": [("second", 1.0)],
    "three": [("peft", 0.4), ("unet", -0.5), ("kohya", 1.3)],
}
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Made:
    folder: Path
    loras: Path
    model: Model  # in torch, f32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = make_sdxl(tmp_path_factory.mktemp("models") / "sdxl")
    (loras := folder.parent / "loras").mkdir()
    checkpoint = open_checkpoint(folder)
    for name, options in FILES.items():
        tensors = tensors_of(checkpoint.spec, **options)
        if name == "first":
            tensors = {key: tensor for key, tensor in tensors.items() if "lora_te1_" in key}
        alphas = {"unet": 16, "text_encoder": 8, "text_encoder_2": 24}
        write(
            loras / f"{name}.safetensors",
            tensors,
            configured(16, alphas) if name == "peft" else None,
        )
    return Made(folder, loras, load(checkpoint, Choice("torch", "f32", threads=1, device="cpu"), Beside(loras=loras)))


@pytest.fixture(scope="module")
def pipe(made: Made) -> Any:
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(made.folder, dtype=torch.float32, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    scheduler, switches = THEIRS["ddim"]
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **switches)
    return pipe


def lora_of(model: Model, loras: list[tuple[str, float]]) -> Lora | None:
    assert model.loras is not None
    return model.loras.lora(model.loras.chosen(loras)) if loras else None


def ours(model: Model, loras: list[tuple[str, float]]) -> Pixels:
    return generate(model, **ASKED, sampler="ddim", lora=lora_of(model, loras))


@pytest.mark.parametrize("choice", [*CHOICES, *(pytest.param(name, marks=WHOLE) for name in MORE)], ids=str)
def test_pictures_are_diffusers(made: Made, pipe: Any, choice: str) -> None:
    loras = (CHOICES | MORE)[choice]
    wanted, got = drawn_by(pipe, made.loras, loras, **ASKED), ours(made.model, loras)
    assert psnr(got, wanted) >= EXACT
    assert psnr(ours(made.model, []), wanted) < 35, "a LoRA that changes nothing proves nothing"
    name, weight = loras[0]
    assert psnr(ours(made.model, [(name, weight + 0.25), *loras[1:]]), wanted) < EXACT, "nor does one at any weight"


def test_each_text_encoder_has_its_own(made: Made) -> None:
    """The first one's changes its half of the context, the second one's the other half and the pooled text."""
    model, width = made.model, made.model.spec.text.width
    ids = model.tokenizer.encode(PROMPT).ids
    plain, first, second = (
        model.backend.encode_text(ids, 0, lora_of(model, loras)) for loras in ([], [("first", 1.0)], [("second", 1.0)])
    )
    assert plain.pooled is not None and first.pooled is not None and second.pooled is not None
    assert np.array_equal(first.context[:, width:], plain.context[:, width:])
    assert np.array_equal(first.pooled, plain.pooled)
    assert np.array_equal(second.context[:, :width], plain.context[:, :width])
    for one, other in (
        (first.context[:, :width], plain.context[:, :width]),
        (second.context[:, width:], plain.context[:, width:]),
        (second.pooled, plain.pooled),
    ):
        assert error(one, other) > 1e-2


@pytest.mark.parametrize("backend", ["openvino", pytest.param("onnxruntime", marks=WHOLE), "device"])
def test_other_backends_encode_what_torch_encodes(made: Made, backend: str) -> None:
    other = made.model.backend if backend != "device" else on_device(made.model).backend
    if backend != "device":
        other = load(made.model.checkpoint, Choice(backend, "f32", threads=1), Beside(loras=made.loras)).backend
    ids = made.model.tokenizer.encode(PROMPT).ids
    for loras in ([("whole", 1.0)], [], [("peft", -0.5), ("whole", 1.0)], [("unet", 1.0)], [("second", 1.0)]):
        lora = lora_of(made.model, loras)
        got, wanted = (each.encode_text(ids, 1, lora) for each in (other, made.model.backend))
        assert got.pooled is not None and wanted.pooled is not None
        assert error(got.context, wanted.context) < 1e-5 and error(got.pooled, wanted.pooled) < 1e-5


@pytest.mark.parametrize("backend", [pytest.param("openvino", marks=WHOLE), pytest.param("onnxruntime", marks=WHOLE)])
def test_graphs_draw_what_torch_draws(made: Made, backend: str) -> None:
    model = load(made.model.checkpoint, Choice(backend, "f32", threads=1), Beside(loras=made.loras))
    for loras in ([], [("whole", 0.8), ("peft", 0.5)]):
        assert psnr(ours(model, loras), ours(made.model, loras)) >= EXACT


def test_contexts_are_remembered_for_their_lora(made: Made) -> None:
    model, contexts = made.model, Contexts(made.model.backend)
    (prompt,) = read_prompts(model.tokenizer, [PROMPT])
    plain, first, second = lora_of(model, []), lora_of(model, [("first", 1.0)]), lora_of(model, [("second", 1.0)])
    unet = lora_of(model, [("unet", 1.0)])
    got = {}
    for lora, fresh in ((plain, 1), (first, 1), (second, 1), (unet, 0), (first, 0), (second, 0), (plain, 0)):
        text, encoded = contexts.of(prompt, lora)
        wanted = encoded_prompt(prompt, lambda ids, skip, lora=lora: model.backend.encode_text(ids, skip, lora))
        assert encoded == fresh and text.pooled is not None and wanted.pooled is not None
        assert np.array_equal(text.context, wanted.context) and np.array_equal(text.pooled, wanted.pooled)
        got[id(lora)] = text
    zeros = read_prompts(model.tokenizer, [PROMPT, ""], zero_negative=True)[1]
    contexts.of(zeros)
    for lora in (first, second):
        assert contexts.missing(zeros, lora and lora.key) == 0 and contexts.of(zeros, lora)[1] == 0, "for its shape"
    assert not np.array_equal(got[id(first)].context, got[id(second)].context)


def on_device(model: Model) -> Model:
    """The CUDA path over CPU tensors; no GPU has run it with a LoRA."""
    backend = CudaBackend(model.checkpoint, "f32", pixels="exact", device="cpu", kernels=plain_kernels())
    return replace(model, backend=backend)


def sitting(model: Model, chance: random.Random, loras: list[tuple[str, float]]) -> Sitting:
    request, shape, lora = random_request(chance), latent_shape(model), lora_of(model, loras)
    request = replace(request, steps=min(request.steps, 2), begin=0)
    texts = [request.prompt, request.negative][: 2 if request.guidance > 1 else 1]
    given = [
        encoded_prompt(prompt, lambda ids, skip: model.backend.encode_text(ids, skip, lora))
        for prompt in read_prompts(model.tokenizer, texts, zero_negative=True)
    ]
    default = model.spec.defaults
    sizes = chance.choice([AS_IT_IS, Sizes(original=(32, 48)), Sizes(crop=(8, 0))])
    told, run = sizes.inputs(model.spec.unet, default.width, default.height), table_of(model, request)
    return Sitting(
        run,
        standard_normal(request.seed, shape, draws=1 + run.draws),
        given[0].context,
        given[1].context if len(given) == 2 else None,
        request.guidance,
        beside=[text.beside | told for text in given],
        lora=lora,
        **conditions_of(request, shape),
    )


@pytest.mark.parametrize("where", [pytest.param("host", marks=WHOLE), "device"])
@pytest.mark.parametrize("number", [0, *(pytest.param(number, marks=WHOLE) for number in range(1, 20))])
def test_any_company(made: Made, where: str, number: int) -> None:
    """Mixes of requests in one lane have the bits that each has alone."""
    model, chance = made.model if where == "host" else on_device(made.model), random.Random(number)
    choices: list[list[tuple[str, float]]] = [[], [("unet", 1.0)], [("whole", -0.5)], [("peft", 0.5), ("kohya", 0.7)]]
    chance.shuffle(choices)
    sittings = [sitting(model, chance, loras) for loras in choices[: 3 if number == 0 else SEATS]]
    for one, latents in zip(sittings, drawn(model, sittings, number), strict=True):
        assert np.array_equal(latents, drawn(model, [one], 0)[0])


@WHOLE
def test_both_steppers_compute_the_same(made: Made) -> None:
    device = on_device(made.model)
    results = []
    for loras in ([("whole", 1.0)], []):
        on_each = [drawn(each, [sitting(each, random.Random(4), loras)], 0)[0] for each in (made.model, device)]
        assert error(on_each[1], on_each[0]) < 1e-4
        results.append(on_each[0])
    assert error(results[0], results[1]) > 1e-2, "a LoRA that changes nothing proves nothing"


@pytest.fixture
def shelves(made: Made, tmp_path: Path) -> dict[str, Shelf]:
    """The same folder, as SDXL and as an SD 1.x read it."""
    tiny = open_checkpoint(make_checkpoint(tmp_path / "tiny")).spec
    return {name: Shelf(tmp_path, spec, name) for name, spec in (("xl", made.model.spec), ("tiny", tiny))}


def listing(shelf: Shelf, tensors: Tensors) -> Any:
    write(shelf.folder / "it.safetensors", tensors)
    (listed,) = [each for each in shelf.listed() if each.name == "it"]
    if listed.refusal:
        with pytest.raises(InvalidRequest) as caught:
            shelf.chosen([("it", 1.0)])
        assert str(caught.value) == f"loras: {listed.refusal}" and "\n" not in listed.refusal
    return listed


def test_each_family_refuses_the_others(shelves: dict[str, Shelf], made: Made, tmp_path: Path) -> None:
    xl, tiny = made.model.spec, open_checkpoint(tmp_path / "tiny").spec
    like_sd1 = replace(tiny, unet=replace(tiny.unet, context_width=768), text=replace(tiny.text, width=768))
    like_xl = replace(xl, unet=replace(xl.unet, context_width=2048))
    for style in ("kohya", "peft", "diffusers"):
        said = listing(shelves["xl"], tensors_of(like_sd1, style=style)).refusal
        assert said.startswith("LoRA it ") and "xl" in said and "looks like one for SD 1.x" in said
        said = listing(shelves["tiny"], tensors_of(like_xl, style=style)).refusal
        assert said.startswith("LoRA it ") and "tiny" in said and "SDXL" in said
    said = listing(shelves["xl"], tensors_of(like_sd1, only="text_model")).refusal
    assert "xl has no layer, and looks like one for SD 1.x: lora_te_" in said, "the first encoder has SD 1.x's shapes"
    second = tensors_of(xl, only="text_encoder_2")
    assert (
        "with several text encoders (SDXL, SD 3); tiny has one: lora_te2_" in listing(shelves["tiny"], second).refusal
    )


def test_a_file_of_sdxl_says_so(shelves: dict[str, Shelf], made: Made) -> None:
    for style in ("original", "kohya", "peft", "diffusers"):
        listed = listing(shelves["xl"], tensors_of(made.model.spec, style=style))
        assert (listed.refusal, listed.base) == ("", "SDXL"), style
    wide = replace(made.model.spec, unet=replace(made.model.spec.unet, context_width=2048))
    shelf = Shelf(shelves["xl"].folder, wide, "wide")
    assert listing(shelf, tensors_of(wide, text=False)).base == "SDXL"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora_te2_text_projection", "xl has no layer, and looks like one for SDXL: lora_te2_text_projection"),
        ("lora_te3_encoder_block_0", "several text encoders (SD 3)"),
        ("lora_te2_text_model_encoder_layers_9_mlp_fc1", "xl has no layer"),
        ("lora_unet_label_emb_0_0", "xl has no layer"),
        ("lora_unet_input_blocks_1_0_in_layers_2", "a LoCon"),
        ("lora_unet_output_blocks_2_2_conv", "a LoCon"),
        ("lora_unet_out_2", "a LoCon"),
        ("lora_unet_down_blocks_0_resnets_0_time_emb_proj", "a LoCon"),
    ],
)
def test_nothing_of_a_file_is_left_out(shelves: dict[str, Shelf], made: Made, key: str, words: str) -> None:
    tensors = tensors_of(made.model.spec, only="text_encoder_2")
    more = {f"{key}.lora_{which}.weight": np.zeros((4, 4), np.float16) for which in ("down", "up")}
    assert words in listing(shelves["xl"], tensors | more).refusal


def test_a_layer_twice_under_two_names(shelves: dict[str, Shelf], made: Made) -> None:
    tensors = tensors_of(made.model.spec, only="text_encoder_2.text_model.encoder.layers.0.mlp.fc1")
    again = tensors_of(made.model.spec, only="text_encoder_2.text_model.encoder.layers.0.mlp.fc1", style="peft")
    assert (
        "adds to text_encoder_2.text_model.encoder.layers.0.mlp.fc1 twice"
        in listing(shelves["xl"], tensors | again).refusal
    )
