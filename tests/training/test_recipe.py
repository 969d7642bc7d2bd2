"""A recipe is read, or refused in words that name the key, its value and the limit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import graphs
from pipeline.networks import ClipSpec
from pipeline.spec import read_spec
from training.errors import TrainingError
from training.networks import text_spec, unet_spec, vae_spec, vision_spec
from training.recipe import Recipe, read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "training/recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_read(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.name == path.stem
    assert recipe.digest != Recipe().digest


@pytest.mark.parametrize("name", ["own-pictures", "own-pictures-short"])
def test_what_is_trained_with_the_demo_model_s_shapes_has_graphs_that_ship(name: str) -> None:
    """Whoever trained on a folder of pictures serves the model at once, without torch."""
    recipe = read_recipe(RECIPES[0].with_name(f"{name}.yaml"))
    demo = read_spec(Path(__file__).parents[2] / "demo/small-things")
    unet = unet_spec(recipe, recipe.phases.adapter.tokens)
    trained = dataclasses.replace(demo, text=text_spec(recipe), unet=unet, vae=vae_spec(recipe))
    assert all(graphs.shipped(network, trained) for network in graphs.NETWORKS)
    clip = ClipSpec(vision_spec(recipe), text_spec(recipe))
    assert all(graphs.shipped(network, clip) for network in graphs.TOWERS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour: 3", "the recipe has no key 'colour'; there are: name, seed, threads"),
        ("phases: {denoiser: {step: 3}}", "phases.denoiser has no key 'step'; there are: steps, batch, rate"),
        ("phases: {denoiser: {steps: 0}}", "phases.denoiser.steps is 0; it must be 1 to 1e+08"),
        ("phases: {denoiser: {steps: 1.5}}", "phases.denoiser.steps is 1.5; it must be a whole number"),
        ("phases: {denoiser: {rate: fast}}", "phases.denoiser.rate is 'fast'; it must be a number"),
        ("phases: {denoiser: {rate: .nan}}", "phases.denoiser.rate is nan; it must be 0 to 1"),
        ("phases: {denoiser: {bfloat16: 1}}", "phases.denoiser.bfloat16 is 1; it must be true or false"),
        ("phases: {denoiser: {optimizer: sgd}}", "phases.denoiser.optimizer is 'sgd'; it must be one of adamw, muon"),
        ("phases: 3", "phases is 3; it must be keys and values"),
        ("[1]", "the recipe is [1]; it must be keys and values"),
        ("data: {kind: movies}", "data.kind is 'movies'; it must be one of drawn, folder, shapes"),
        ("data: {kind: folder}", "data.folder is missing; data.kind folder needs it"),
        ("data: {kind: shapes, side: 60}", "data.side is 60; with these blocks it must be a multiple of 16"),
        ("data: {kind: shapes, styles: color}", "data.styles is 'color'; it must be a list"),
        ("data: {kind: shapes}\nunet: {channels: [30, 60, 90]}", "unet.channels is [30, 60, 90]; each must be"),
        ("data: {kind: shapes}\ntext: {heads: 5}", "text.width is 192; it must be a multiple of text.heads 5"),
        ("data: {kind: shapes}\nname: ../up", "name is '../up'; it names a folder"),
        ("data: {kind: shapes}\nevaluate: {sampler: fast}", "evaluate.sampler is 'fast'; it must be one of ddim, ddpm"),
        ("a: [", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError) as error:
        read_recipe(path)
    assert words in str(error.value) and str(path) in str(error.value)


def test_a_rate_may_have_no_dot(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {kind: shapes}\nphases: {denoiser: {rate: 8e-4}}")
    assert read_recipe(path).phases.denoiser.rate == 8e-4


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is not there"):
        read_recipe(tmp_path / "none.yaml")
