"""Which graphs there are: each is of a listed spec, each listed spec has its own, and a name is what shapes a graph."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

import graphs
from engines.graphs import kept_name
from export.committed import SHIPPED, TESTS, committed, published, under_test
from pipeline.checkpoint.single_file.configs import configs
from pipeline.checkpoint.single_file.kinds import SD1, SD2, SDXL, Family
from pipeline.checkpoint.single_file.layout import TextLayout, UnetLayout, VaeLayout
from pipeline.checkpoint.single_file.marks import Trained
from pipeline.source import InMemory
from pipeline.spec import Spec, UnetSpec, read_spec
from tests.support.graph_specs import SPECS, specs_of_all, text_of

PUBLISHED, TESTED = published(), under_test()
SD15 = PUBLISHED["stable-diffusion-v1-5/stable-diffusion-v1-5"]
SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_INPAINTING = "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"


def names(spec: Spec) -> list[str]:
    return [graphs.name_of(network, spec) for network in graphs.NETWORKS]


def test_each_committed_graph_is_of_a_listed_spec() -> None:
    paths = {path for folder in (SHIPPED, TESTS) for path in folder.glob("*.onnx")}
    assert paths == committed().keys()
    assert sum(path.stat().st_size for path in paths) < 6e6


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_config_finds_its_graphs(model: str) -> None:
    for network in graphs.NETWORKS:
        path = graphs.shipped(network, PUBLISHED[model])
        assert path and path.parent == SHIPPED and path.name.startswith(f"{network}-")


def test_what_the_published_models_share() -> None:
    """A name that changes makes the cached graphs of users useless, so two are written down."""
    turbo, lcm = PUBLISHED["stabilityai/sd-turbo"], PUBLISHED["SimianLuo/LCM_Dreamshaper_v7"]
    assert names(PUBLISHED["CompVis/stable-diffusion-v1-4"]) == names(SD15)
    assert names(PUBLISHED["stabilityai/stable-diffusion-2-1"]) == names(turbo), "at 768 pixels as at 512"
    assert [a == b for a, b in zip(names(SD15), names(lcm), strict=True)] == [True, False, True, True]
    assert [a == b for a, b in zip(names(SD15), names(turbo), strict=True)] == [False, False, True, True]
    base, inpainting = names(PUBLISHED[SDXL_BASE]), names(PUBLISHED[SDXL_INPAINTING])
    assert names(PUBLISHED["stabilityai/sdxl-turbo"]) == base, "at 512 pixels as at 1024"
    assert [a == b for a, b in zip(base, inpainting, strict=True)] == [True, False, True, True]
    assert not set(base) & set(names(SD15)), "its VAE has another scale"
    assert names(SD15)[1] == "unet-1b6cdec081dee6fd.onnx"
    assert names(SD15)[2] == "vae_decoder-774418f31ce46555.onnx"


def test_the_readme_names_each_shipped_graph() -> None:
    text = (SHIPPED / "README.md").read_text()
    assert all(path.name in text for path in committed() if path.parent == SHIPPED)


def changes(part: object) -> list[object]:
    """Variants of a part of a spec, in each of which one field is another."""
    other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.5, str: lambda v: v + "!"}
    other |= {tuple: lambda values: (*values, 1), type(None): lambda _: 7}
    values = {field.name: getattr(part, field.name) for field in fields(part)}  # type: ignore[arg-type]
    return [replace(part, **{name: other[type(value)](value)}) for name, value in values.items()]  # type: ignore[type-var]


def test_a_change_of_any_field_needs_another_graph() -> None:
    specs = [replace(SD15, text=part) for part in changes(SD15.text)]
    specs += [replace(SD15, unet=part) for part in changes(SD15.unet)]
    specs += [replace(SD15, vae=part) for part in changes(SD15.vae)]
    trained = replace(SD15, unet=replace(SD15.unet, sample_size=SD15.unet.sample_size + 1))
    specs.remove(trained)
    assert names(trained) == names(SD15), "a graph takes every size"
    every = {name for spec in specs for name in names(spec)}
    text, unet, vae = (len(fields(part)) for part in (SD15.text, SD15.unet, SD15.vae))
    assert len(every) == 4 + text + (unet - 1) + 2 * vae, "the plain ones, and one for each field and network"
    eps = replace(SD15, unet=replace(SD15.unet, eps=1e-6))
    assert graphs.shipped("unet", eps) is None and graphs.shipped("vae_decoder", eps) is not None


def test_a_field_that_comes_later_renames_nothing() -> None:
    @dataclass(frozen=True)
    class Later(UnetSpec):
        classes: int = 0

    values = {field.name: getattr(SD15.unet, field.name) for field in fields(SD15.unet)}
    assert names(replace(SD15, unet=Later(**values))) == names(SD15)
    assert names(replace(SD15, unet=Later(**values, classes=3))) != names(SD15)


def test_specs_json_is_what_the_test_checkpoints_are() -> None:
    assert SPECS.read_text() == text_of(specs_of_all()), "run python -m tests.support.graph_specs, then make graphs"


def test_serving_finds_the_graphs_of_the_test_checkpoints(cache: Path) -> None:
    for spec in TESTED.values():
        for network in graphs.NETWORKS:
            name = graphs.name_of(network, spec)
            kept = cache / "graphs" / kept_name(name)
            assert graphs.shipped(network, spec) or kept.read_bytes() == (TESTS / name).read_bytes()


ATTENDS = (True, True, True, False)


@pytest.mark.parametrize(
    ("family", "model", "guidance"),
    [
        (SD1, "stable-diffusion-v1-5/stable-diffusion-v1-5", None),
        (SD1, "SimianLuo/LCM_Dreamshaper_v7", 256),
        (SD2, "stabilityai/stable-diffusion-2-1", None),
    ],
)
def test_a_single_file_finds_those_of_its_folder(family: Family, model: str, guidance: int | None) -> None:
    old = family is SD1
    width = 768 if old else 1024
    unet = UnetLayout(
        4, 4, (320, 640, 1280, 1280), (2,) * 4, ATTENDS, ATTENDS[::-1], (1,) * 4, width, not old, guidance
    )
    text = TextLayout(49408, 77, width, 4 * width, 12 if old else 23)
    assert names_of_a_file(family, unet, [text]) == names(PUBLISHED[model])


@pytest.mark.parametrize(
    ("channels", "model"),
    [(4, SDXL_BASE), (9, SDXL_INPAINTING)],
)
def test_a_single_file_of_sdxl_too(channels: int, model: str) -> None:
    attends = (False, True, True)
    unet = UnetLayout(
        channels, 4, (320, 640, 1280), (2,) * 3, attends, attends[::-1], (1, 2, 10), 2048, True, None, given=2816
    )
    texts = [TextLayout(49408, 77, 768, 3072, 12), TextLayout(49408, 77, 1280, 5120, 32, projection=1280)]
    assert names_of_a_file(SDXL, unet, texts) == names(PUBLISHED[model])


def names_of_a_file(family: Family, unet: UnetLayout, texts: list[TextLayout]) -> list[str]:
    vae = VaeLayout(3, 4, (128, 256, 512, 512), 2, True, True, True)
    files = configs(Path("model.safetensors"), family, unet, vae, texts, Trained("epsilon", zero_snr=False))
    source = InMemory(Path("model.safetensors"), {name: json.dumps(value).encode() for name, value in files.items()})
    return names(read_spec(source))
