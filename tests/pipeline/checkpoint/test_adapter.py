"""Style adapters: what a checkpoint becomes with one, and which files are refused, in which words."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engines.choice import Choice
from engines.errors import BackendError
from engines.model import Beside, load
from pipeline.checkpoint.adapter import adapter_in, encoder_in, with_adapter
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from pipeline.errors import CheckpointError
from pipeline.spec import read_spec
from tests.support.adapters import TOKENS, adapter_tensors, make_styled
from tests.support.clips import JUDGE, make_judge, pixels_of

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_styled(tmp_path_factory.mktemp("models") / "styled")


@pytest.fixture(scope="module")
def styled(folder: Path) -> Checkpoint:
    """The checkpoint alone: nobody has looked for its adapter yet."""
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def tensors(styled: Checkpoint) -> Tensors:
    return adapter_tensors(styled.spec)


def test_its_tensors_are_among_the_unets(folder: Path, styled: Checkpoint) -> None:
    file = adapter_in(folder)
    assert file == folder / "ip_adapter/ip-adapter_small.safetensors"
    got = with_adapter(styled, file)
    assert (got.spec.unet.style_tokens, styled.spec.unet.style_tokens) == (TOKENS, 0) and got.adapter == file
    new = got.weights.tensors("unet").keys() - styled.weights.tensors("unet").keys()
    assert new == {f"{path}.to_{kind}_ip.weight" for path, _ in styled.spec.unet.text_layers for kind in "kv"}
    assert got.weights.digest() != styled.weights.digest()
    assert adapter_in(folder / "unet") is None


def without(prefix: str, tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t | {"image_proj.latents": torch.zeros(1, 16, 8)},
            "looks like an IP-Adapter Plus, whose image proj",
        ),
        (lambda t: t | {"ip_adapter.0.to_q_lora.down.weight": torch.zeros(2, 2)}, "looks like an IP-Adapter FaceID;"),
        (lambda t: t | {"image_proj.proj.0.weight": torch.zeros(2, 2)}, "looks like an IP-Adapter Full Face or FaceID"),
        (lambda t: without("ip_adapter", t), "looks like no IP-Adapter (its tensors: image_proj.norm.bias, "),
        (lambda t: {"a": torch.zeros(1)}, "looks like no IP-Adapter (its tensors: a, ...)"),
        (lambda t: without("ip_adapter.1.to_k", t), "of 12 tensors, 1 missing (ip_adapter.1.to_k_ip.weight)"),
        (lambda t: t | {"ip_adapter.99.to_k_ip.weight": torch.zeros(2)}, "1 unknown (ip_adapter.99.to_k_ip.weight)"),
        (
            lambda t: t | {"image_proj.proj.weight": torch.zeros(4 * 47, 24)},
            "is for another UNet: it projects a picture",
        ),
        (lambda t: t | {"image_proj.norm.bias": torch.zeros(47)}, "image_proj.norm.bias has shape [47], the UNet of"),
    ],
)
def test_another_file_is_refused(styled: Checkpoint, tensors: Tensors, tmp_path: Path, change, words: str) -> None:
    file = tmp_path / "adapter.safetensors"
    save_file(change(dict(tensors)), file)
    with pytest.raises(CheckpointError) as raised:
        with_adapter(styled, file)
    assert str(raised.value).startswith(str(file)) and words in str(raised.value)


def test_a_pickle_is_refused_by_its_name(styled: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "ip-adapter_sd15.bin").touch()
    with pytest.raises(CheckpointError, match=r"ip-adapter_sd15\.bin is no \.safetensors file by its name"):
        with_adapter(styled, tmp_path / "ip-adapter_sd15.bin")


@pytest.mark.parametrize("name", ["x", "x.safetensors"])
def test_a_file_that_is_not_there_is_said_to_be_missing(folder: Path, tmp_path: Path, name: str) -> None:
    """Before the missing encoder of what is missing is asked for."""
    plain = linked(folder, tmp_path / "plain")
    with pytest.raises(CheckpointError, match=f"^style adapter .*/{name} is not there; give an IP-Adapter's"):
        load(plain, Choice("onnxruntime", "f32", threads=1), Beside(tmp_path / name))


def test_two_files_are_one_too_many(tmp_path: Path) -> None:
    (tmp_path / "ip_adapter").mkdir()
    for name in "ab":
        (tmp_path / f"ip_adapter/{name}.safetensors").touch()
    with pytest.raises(
        CheckpointError, match="holds 2 .safetensors files; leave one there, or name one with --style-a"
    ):
        adapter_in(tmp_path)


def linked(folder: Path, place: Path, *names: str) -> Checkpoint:
    """The checkpoint of `folder` without what lies beside it, but for `names`."""
    place.mkdir()
    for each in folder.iterdir():
        if each.name not in ("ip_adapter", "image_encoder", "judge") or each.name in names:
            (place / each.name).symlink_to(each)
    return open_checkpoint(place)


def test_what_lies_in_a_folder_is_loaded_and_what_is_named_comes_first(folder: Path, tmp_path: Path) -> None:
    choice = Choice("onnxruntime", "f32", threads=1)
    plain = load(linked(folder, tmp_path / "plain"), choice)
    assert plain.styles is None and plain.judge is None and not plain.spec.unet.style_tokens
    judge = make_judge(tmp_path / "some-judge")
    (file,) = (folder / "ip_adapter").iterdir()
    named = load(plain.checkpoint, choice, Beside(file, folder / "image_encoder", judge))
    assert named.styles is not None and named.judge is not None and named.judge.path == judge
    assert named.spec.unet.style_tokens == TOKENS and named.digest != plain.digest


def test_an_adapter_without_its_encoder(folder: Path, tmp_path: Path) -> None:
    choice = Choice("onnxruntime", "f32", threads=1)
    with pytest.raises(CheckpointError, match="there is no image encoder; name its folder with --style-encoder"):
        load(linked(folder, tmp_path / "alone", "ip_adapter"), choice)
    plain = linked(folder, tmp_path / "plain")
    with pytest.raises(CheckpointError, match="there is no style adapter; name one too"):
        load(plain, choice, Beside(encoder=folder / "image_encoder"))
    with pytest.raises(CheckpointError, match="missing is not there; give the folder of a CLIPVisionModelWithP"):
        load(open_checkpoint(folder), choice, Beside(encoder=tmp_path / "missing"))


def test_a_judge_encodes_for_an_adapter_without_an_encoder_of_its_own(tmp_path: Path) -> None:
    """As latentd's own training leaves them: the tower is there once. image_encoder/ comes first where it is there."""
    folder, choice = make_styled(tmp_path / "model"), Choice("onnxruntime", "f32", threads=1)
    judge = make_judge(folder / "judge")
    assert encoder_in(folder) == folder / "image_encoder"
    shutil.rmtree(folder / "image_encoder")
    (file,) = (folder / "ip_adapter").iterdir()
    with pytest.raises(CheckpointError, match="takes embeddings of 24 numbers, and .*/judge gives 20: name the encod"):
        load(open_checkpoint(folder), choice)
    tensors = adapter_tensors(read_spec(folder), embedding=JUDGE.vision.projection)
    save_file(tensors, file)
    copy = shutil.copytree(judge, tmp_path / "copy")
    model, named = (load(open_checkpoint(folder), choice, beside) for beside in (Beside(), Beside(encoder=copy)))
    assert model.styles is not None and model.judge is not None
    assert named.styles is not None and named.judge is not None
    assert model.styles._vision is model.judge.vision and named.styles._vision is not named.judge.vision
    tokens, others = (model.styles.of(pixels_of(30, width), 1.0).tokens for width in (30, 40))
    assert (tokens == named.styles.of(pixels_of(30, 30), 1.0).tokens).all() and (tokens != others).any()


def test_another_adapters_encoder(styled: Checkpoint, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    save_file(adapter_tensors(styled.spec, embedding=25), file)
    with pytest.raises(CheckpointError, match="takes embeddings of 25 numbers, and .*image_encoder gives 24: name"):
        load(styled, Choice("onnxruntime", "f32", threads=1), Beside(file))


def test_numbers_that_are_none(styled: Checkpoint, tensors: Tensors, folder: Path, tmp_path: Path) -> None:
    broken = {name: value.clone() for name, value in tensors.items()}
    broken["image_proj.norm.bias"][3] = torch.nan
    save_file(broken, tmp_path / "adapter.safetensors")
    with pytest.raises(CheckpointError, match="image_proj.norm.bias holds NaN or infinite numbers"):
        load(styled, Choice("onnxruntime", "f32", threads=1), Beside(tmp_path / "adapter.safetensors"))
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").symlink_to(folder / "image_encoder/config.json")
    values = load_file(folder / "image_encoder/model.safetensors")
    values["visual_projection.weight"][0, 0] = torch.inf
    save_file(values, encoder / "model.safetensors")
    with pytest.raises(CheckpointError, match="visual_projection.weight holds NaN or infinite numbers"):
        load(styled, Choice("onnxruntime", "f32", threads=1), Beside(encoder=encoder))


def test_plans_draw_no_styles_and_say_so(styled: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.model.on_gpu", lambda choice: True)
    (file,) = (styled.path / "ip_adapter").iterdir()
    with pytest.raises(BackendError, match="backend tensorrt draws no styles yet, so .* is left out; torch draws them"):
        load(styled, Choice("tensorrt"), Beside(file))
