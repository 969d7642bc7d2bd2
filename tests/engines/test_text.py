"""Prompts to contexts: chunks, weights and skipped layers, against formulas written down here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines.choice import Choice
from engines.generate import generate
from engines.model import Model, load
from pipeline.conditions.text import encoded_prompt
from pipeline.prompt import read_prompts


@pytest.fixture(scope="module")
def oracle(model: Model) -> Model:
    return load(model.checkpoint, Choice("torch", threads=1))


def test_a_plain_prompt_is_one_call(model: Model) -> None:
    (prompt,) = read_prompts(model.tokenizer, ["the red apple"])
    alone = model.backend.encode(model.tokenizer.encode("the red apple").ids)
    assert (encoded_prompt(prompt, model.backend.encode_text).context == alone).all()


def test_weights_are_comfyuis_formula(model: Model) -> None:
    """comfy/sd1_clip.py, encode_token_weights: where weight != 1, (z - z_empty) * weight + z_empty."""
    (prompt,) = read_prompts(model.tokenizer, ["red (blue:1.5) cat"], weighted=True)
    encode = model.backend.encode
    z = encode(model.tokenizer.encode("red blue cat").ids)
    z_empty = encode(model.tokenizer.encode("").ids)
    wanted = z.copy()
    wanted[2] = (z[2] - z_empty[2]) * 1.5 + z_empty[2]
    got = encoded_prompt(prompt, model.backend.encode_text).context
    np.testing.assert_allclose(got, wanted, atol=1e-6)  # one rounding of float32 more or less
    assert np.abs(got - z).max() > 0.05, "the weight must show"


def test_chunks_are_laid_end_to_end(model: Model) -> None:
    capacity = model.tokenizer.capacity
    (prompt,) = read_prompts(model.tokenizer, ["red " * capacity + "blue cat"], long=True)
    first, second = (model.backend.encode(model.tokenizer.encode(text).ids) for text in ("red " * capacity, "blue cat"))
    assert (encoded_prompt(prompt, model.backend.encode_text).context == np.concatenate([first, second])).all()


def test_clip_skip_is_transformers(model: Model, oracle: Model) -> None:
    """As diffusers: hidden_states[-(clip_skip + 1)] through the final normalisation."""
    from transformers import CLIPTextModel

    theirs = CLIPTextModel.from_pretrained(model.checkpoint.path / "text_encoder", dtype=torch.float32)
    ids = model.tokenizer.encode("the red apple").ids
    with torch.inference_mode():
        hidden = theirs(torch.from_numpy(ids[None]), output_hidden_states=True).hidden_states
        inner = getattr(theirs, "text_model", theirs)
        wanted = inner.final_layer_norm(hidden[-2])[0].numpy()
    assert model.spec.text.skips == 1
    for backend in (model.backend, oracle.backend):
        np.testing.assert_allclose(backend.encode(ids, 1), wanted, atol=1e-4)  # float32 in another order
        assert np.abs(backend.encode(ids) - wanted).max() > 0.05


def test_pictures_of_long_and_weighted_prompts_change_and_agree(model: Model, oracle: Model) -> None:
    text = "red (blue:2) " * 12
    options = [{}, {"long_prompt": True}, {"prompt_weights": True}, {"clip_skip": 1}]
    pictures = [generate(model, text, seed=5, **option) for option in options]
    for i, picture in enumerate(pictures):
        same = generate(oracle, text, seed=5, **options[i])
        assert np.abs(picture.astype(int) - same).max() <= 2  # of 255
        for other in pictures[i + 1 :]:
            assert np.abs(picture.astype(int) - other).mean() > 1
