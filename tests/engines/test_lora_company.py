"""Seats with other LoRAs, or none, in one lane: each has the bits that it has alone, on both steppers."""

from __future__ import annotations

import gc
import random
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.choice import Choice
from engines.cpu import openvino
from engines.cpu.core import has_bf16
from engines.cuda.backend import CudaBackend
from engines.cuda.kernels import plain_kernels
from engines.model import Beside, Model, load
from engines.seat import Sitting
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.loras.layers import merged
from pipeline.loras.lora import Lora
from pipeline.loras.shelf import Shelf
from pipeline.noise import standard_normal
from tests.support.checkpoints import make_checkpoint
from tests.support.company import SEATS, drawn
from tests.support.comparing import error
from tests.support.loras import tensors_of, write
from tests.support.requests import Request, conditions_of, latent_shape, random_request, table_of

FILES = {"one": 4, "two": 20, "three": 30}  # ranks
CHOICES = [
    [],
    [("one", 1.0)],
    [("one", -0.5)],
    [("two", 0.8)],
    [("three", 1.2)],
    [("one", 0.3), ("two", 0.7)],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    (loras := folder.parent / "loras").mkdir()
    spec = open_checkpoint(folder).spec
    for name, rank in FILES.items():
        write(loras / f"{name}.safetensors", tensors_of(spec, rank, seed=rank, text=name != "one"))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(open_checkpoint(folder), Choice("openvino", "f32", threads=2), Beside(loras=folder.parent / "loras"))


@pytest.fixture(scope="module")
def on_device(model: Model) -> Model:
    """The CUDA path over CPU tensors; no GPU has run it with a LoRA."""
    backend = CudaBackend(model.checkpoint, "f32", pixels="exact", device="cpu", kernels=plain_kernels())
    return replace(model, backend=backend)


def loras(model: Model) -> list[Lora | None]:
    assert model.loras is not None
    shelf = model.loras
    return [shelf.lora(shelf.chosen(choice)) if choice else None for choice in CHOICES]


def sitting(model: Model, request: Request, lora: Lora | None) -> Sitting:
    run, shape = table_of(model, request), latent_shape(model)
    context, negative = (
        model.backend.encode_text(model.tokenizer.encode(text).ids, 0, lora).context
        for text in (request.prompt, request.negative)
    )
    noise = standard_normal(request.seed, shape, draws=1 + run.draws)
    guided = negative if request.guidance > 1 else None
    return Sitting(run, noise, context, guided, request.guidance, lora=lora, **conditions_of(request, shape))


def mixes(model: Model, number: int) -> None:
    chance, choices = random.Random(number), loras(model)
    chosen = [chance.choice(choices) for _ in range(chance.randrange(2, 2 * SEATS))]
    sittings = [sitting(model, random_request(chance), lora) for lora in chosen]
    got = drawn(model, sittings, number)
    for one, latents in zip(sittings, got, strict=True):
        assert np.array_equal(latents, drawn(model, [one], 0)[0])


@pytest.mark.parametrize("where", ["host", "device"])
def test_any_company(model: Model, on_device: Model, where: str) -> None:
    for number in range(1):
        mixes(model if where == "host" else on_device, number)


@pytest.mark.exhaustive
@pytest.mark.parametrize("where", ["host", "device"])
def test_two_hundred_mixes(model: Model, on_device: Model, where: str) -> None:
    for number in range(200):
        mixes(model if where == "host" else on_device, number)


def test_both_steppers_compute_the_same(model: Model, on_device: Model) -> None:
    request = random_request(random.Random(3), "ddim")
    for lora in loras(model):
        one = sitting(model, request, lora)
        host, device = (drawn(each, [one], 0)[0] for each in (model, on_device))
        assert error(device, host) < 1e-4
        again = sitting(on_device, request, lora)
        assert error(again.context, one.context) < 1e-5
    none, other = (drawn(model, [sitting(model, request, lora)], 0)[0] for lora in loras(model)[:2])
    assert error(other, none) > 1e-2, "a LoRA that changes nothing proves nothing"


@pytest.mark.parametrize("where", ["host", "device"])
def test_whoever_has_left_keeps_nothing(folder: Path, model: Model, on_device: Model, where: str) -> None:
    """Neither a seat nor the text encoder: of large LoRAs each may have gigabytes."""
    taken = model if where == "host" else on_device
    shelf = Shelf(folder.parent / "loras", model.spec, "tiny")
    stepper = taken.backend.stepper(model.spec.defaults.width, model.spec.defaults.height, seats=1, rank=32)

    def stepped() -> tuple[weakref.ref[Any], ...]:
        lora = shelf.lora(shelf.chosen([("two", 0.9)]))
        assert lora.text is not None
        stepper.sit(0, sitting(taken, random_request(random.Random(3), "ddim"), lora))
        stepper.step([0])
        return tuple(weakref.ref(next(iter(part.values()))) for part in (lora.unet, lora.text))

    refs = stepped()
    assert shelf.has_room(shelf.chosen([("one", 1.0)])) and all(ref() is not None for ref in refs)
    stepper.leave(0)
    shelf._known.clear()
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_packed_seats_take_twins_and_others(model: Model) -> None:
    """Not `exact`: rows of guided and unguided seats with other LoRAs are one batch."""
    backend = CudaBackend(model.checkpoint, "f32", pixels="fast", device="cpu", kernels=plain_kernels())
    packed, chance = replace(model, backend=backend), random.Random(7)
    requests = [random_request(chance, "ddim") for _ in range(4)]
    sittings = [sitting(model, request, lora) for request, lora in zip(requests, loras(model)[1:5], strict=True)]
    for one, latents in zip(sittings, drawn(packed, sittings, 1), strict=True):
        assert error(latents, drawn(model, [one], 0)[0]) < 1e-3


@pytest.mark.skipif(not has_bf16(), reason="this CPU multiplies no bfloat16")
@pytest.mark.parametrize("small", [0, 32 << 20])
def test_loras_that_come_in_bfloat16_change_no_bit(folder: Path, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    """An engine that takes them in float32 rounds them itself, each time that it runs."""
    monkeypatch.setattr(openvino, "_SMALL", small)
    choice, outputs = Choice("openvino", "bf16", threads=2), []
    for dtype in ("bfloat16", "float32"):
        made = load(open_checkpoint(folder), choice, Beside(loras=folder.parent / "loras"))
        assert made.backend.lora_dtype == "bfloat16"
        if dtype == "float32":
            monkeypatch.setattr(openvino, "taking_bfloat16", lambda model, spec: model)
            backend = openvino.OpenVinoBackend(made.checkpoint, "bf16", 2)
            made = replace(made, backend=backend, loras=Shelf(folder.parent / "loras", made.spec, "tiny"))
        size = made.spec.defaults.width, made.spec.defaults.height
        denoiser = made.backend.denoiser(*size, rows=2, rank=32)
        chance = np.random.default_rng(5)
        for buffer in (denoiser.samples, denoiser.contexts):
            buffer[:] = chance.standard_normal(buffer.shape, np.float32)
        denoiser.timesteps[:] = 300
        for lora in (loras(made)[1], loras(made)[2], None):
            denoiser.put_lora(0, lora)
            denoiser.run([0, 1])
            outputs.append(denoiser.outputs.copy())
    for halves, whole in zip(outputs[:3], outputs[3:], strict=True):
        assert np.array_equal(halves, whole)
    assert error(outputs[0][0], outputs[2][0]) > 1e-2, "a LoRA that changes nothing proves nothing"


def test_one_engine_takes_every_rank(folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large network's engine: it computes what the small one's of each rank do, in any order of ranks."""
    monkeypatch.setattr(openvino, "_SMALL", 0)
    choice = Choice("openvino", "f32", threads=2)
    large = load(open_checkpoint(folder), choice, Beside(loras=folder.parent / "loras"))
    assert model.loras is not None
    many = model.loras.lora(model.loras.chosen([("two", 1.0), ("three", 1.0)]))
    assert many.rank == 64
    size = model.spec.defaults.width, model.spec.defaults.height
    first: dict[int, np.ndarray] = {}
    for rank, lora in ((64, many), (32, loras(model)[1]), (32, None), (64, many), (32, loras(model)[1])):
        results = []
        for each in (large, model):
            denoiser = each.backend.denoiser(*size, rows=1, rank=rank)
            denoiser.samples[:], denoiser.timesteps[:] = 0.5, 300
            denoiser.contexts[:] = each.backend.encode_text(model.tokenizer.encode("red apple").ids, 0, lora).context
            denoiser.put_lora(0, lora)
            denoiser.run([0])
            results.append(denoiser.outputs.copy())
        assert error(*results) < 1e-5
        assert np.array_equal(first.setdefault(id(lora), results[0]), results[0]), "bits depend on what came before"


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_who_writes_into_the_file_changes_no_step(folder: Path, tmp_path: Path, engine: str) -> None:
    """An engine packs nothing of a weight that the graph adds B A to: of float32 it would read it where it lies."""
    copy = make_checkpoint(tmp_path / "model", dtype=torch.float32)
    model = load(open_checkpoint(copy), Choice(engine, "f32", threads=2), Beside(loras=folder.parent / "loras"))
    assert merged(model.spec.unet) and model.loras is not None
    path = copy / "unet/diffusion_pytorch_model.safetensors"
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert b'"F32"' in path.read_bytes()[:header]
    denoiser = model.backend.denoiser(32, 32, rows=1, rank=model.rank)
    denoiser.samples[:], denoiser.contexts[:], denoiser.timesteps[:] = 0.5, 0.1, 300
    denoiser.put_lora(0, model.loras.lora(model.loras.chosen([("two", 1.0)])))
    outputs = []
    for _ in range(2):
        denoiser.run([0])
        outputs.append(denoiser.outputs.copy())
        with path.open("r+b") as file:
            file.seek(header)
            file.write(bytes(path.stat().st_size - header))
    assert np.array_equal(*outputs)
