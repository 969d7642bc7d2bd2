"""Seats with and without a style in one lane: each has the bits that it has alone, on both steppers."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from engines.choice import Choice
from engines.cuda.backend import CudaBackend
from engines.cuda.kernels import plain_kernels
from engines.generate import latents_of
from engines.model import Model, load
from engines.seat import Sitting
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.conditions.style import Style
from pipeline.noise import standard_normal
from tests.support.adapters import make_styled
from tests.support.company import drawn
from tests.support.requests import Request, conditions_of, latent_shape, random_request, table_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = make_styled(tmp_path_factory.mktemp("models") / "styled")
    return load(open_checkpoint(folder), Choice("openvino", "f32", threads=2))


@pytest.fixture(scope="module")
def on_device(model: Model) -> Model:
    """The CUDA path over CPU tensors; no GPU has run it with a style."""
    backend = CudaBackend(model.checkpoint, "f32", pixels="exact", device="cpu", kernels=plain_kernels())
    return replace(model, backend=backend)


def styles(model: Model) -> list[Style | None]:
    assert model.styles is not None
    chance = np.random.default_rng(5)
    pictures = [chance.integers(0, 256, (40, 30, 3), np.uint8) for _ in range(2)]
    return [None, None, model.styles.of(pictures[0], 1.0), model.styles.of(pictures[1], 0.4)]


def sitting(model: Model, request: Request, style: Style | None) -> Sitting:
    run, shape = table_of(model, request), latent_shape(model)
    context, negative = (
        model.backend.encode(model.tokenizer.encode(text).ids) for text in (request.prompt, request.negative)
    )
    noise = standard_normal(request.seed, shape, draws=1 + run.draws)
    return Sitting(
        run,
        noise,
        context,
        negative if request.guidance > 1 else None,
        request.guidance,
        style=style,
        **conditions_of(request, shape),
    )


@pytest.mark.parametrize("where", ["host", "device"])
def test_any_company(model: Model, on_device: Model, where: str) -> None:
    chance, chosen = random.Random(9), model if where == "host" else on_device
    styled = styles(model)
    requests = [(random_request(chance), styled[i % 4]) for i in range(12)]
    sittings = [sitting(chosen, request, style) for request, style in requests]
    together = drawn(chosen, sittings, 3)
    for number, (request, style) in enumerate(requests):
        (alone,) = drawn(chosen, [sittings[number]], 0)
        assert np.array_equal(alone, together[number]), (request, style is not None)
    if where == "host":  # and what generate makes of it
        for got, (request, style) in zip(together, requests, strict=True):
            options = {name: getattr(request, name) for name in ("seed", "steps", "guidance", "sampler", "begin")}
            shape = latent_shape(model)
            options |= conditions_of(request, shape)
            assert np.array_equal(got, latents_of(model, request.prompt, request.negative, style=style, **options))


@pytest.mark.parametrize("pixels", ["exact", "fast"])
def test_the_device_path_draws_what_the_host_does(model: Model, pixels: str) -> None:
    backend = CudaBackend(model.checkpoint, "f32", pixels=pixels, device="cpu", kernels=plain_kernels())
    other = replace(model, backend=backend)
    for style in styles(model)[1:3]:
        options = {"seed": 4, "steps": 4, "guidance": 3.0, "style": style}
        host, device = (latents_of(each, "the red apple", "blue", **options) for each in (model, other))
        assert np.abs(host - device).max() < 1e-4 * np.abs(host).max()
        sits = sitting(other, Request("the red apple", "blue", 4, 4, 3.0, model.spec.defaults.sampler), style)
        (stepped,) = drawn(other, [sits], 0)
        assert np.abs(stepped - host).max() < 1e-4 * np.abs(host).max()


def test_half_precision_takes_styles_too(model: Model) -> None:
    backend = CudaBackend(model.checkpoint, "f16", pixels="fast", device="cpu", kernels=plain_kernels())
    with torch.inference_mode():
        half = latents_of(replace(model, backend=backend), "the red apple", seed=4, steps=3, style=styles(model)[2])
    whole = latents_of(model, "the red apple", seed=4, steps=3, style=styles(model)[2])
    assert 0 < np.abs(half - whole).max() < 0.05 * np.abs(whole).max()
