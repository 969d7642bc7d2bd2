"""The judge against transformers' CLIPModel of the same folder: towers, tokens, projections and scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizerFast

from engines.clip.judge import Judge
from engines.clip.tower import tower_of
from pipeline.checkpoint.clip import open_encoder, open_judge
from pipeline.errors import CheckpointError
from tests.support.checkpoints import make_checkpoint
from tests.support.clips import make_encoder, make_judge
from tests.support.clips import pixels_of as picture
from tests.support.clips import sight_of as theirs

TOLERANCE = 1e-4  # of a score; those below are of order one
TEXTS = ["the red apple", "photo of the blue cat", "", "cat " * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_judge(tmp_path_factory.mktemp("judge"))


def nobody(remark: str) -> None:
    raise AssertionError(remark)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch", "tensorrt"])
def test_scores_are_those_of_transformers(folder: Path, backend: str) -> None:
    pictures = [picture(30, 30), picture(48, 71), picture(200, 90)]
    model = CLIPModel.from_pretrained(folder)
    tokens = CLIPTokenizerFast.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.inference_mode():
        pixels = torch.from_numpy(np.stack([theirs(pixels, 30) for pixels in pictures]))
        wanted = model(input_ids=tokens["input_ids"], pixel_values=pixels).logits_per_image.numpy()
    judge = Judge(open_judge(folder, nobody), backend, threads=1)
    texts = [judge.text(text) for text in TEXTS]
    got = judge.scores([judge.picture(pixels) for pixels in pictures], texts)
    assert got.shape == wanted.shape == (3, 4)
    assert np.abs(got - wanted).max() < TOLERANCE
    assert np.abs(got[::-1] - wanted).max() > 100 * TOLERANCE, "one picture scores as another"
    assert np.abs(got[:, ::-1] - wanted).max() > 100 * TOLERANCE, "one text scores as another"
    assert [judge.cut(text) for text in TEXTS] == [False, False, False, True]


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch"])
def test_an_image_encoder_is_a_tower_without_texts(tmp_path: Path, backend: str) -> None:
    from transformers import CLIPVisionModelWithProjection

    make_encoder(tmp_path)
    pixels = theirs(picture(50, 41), 28)
    with torch.inference_mode():
        wanted = CLIPVisionModelWithProjection.from_pretrained(tmp_path)(torch.from_numpy(pixels)[None]).image_embeds
    tower = tower_of(open_encoder(tmp_path), "vision_tower", backend, threads=1)
    assert np.abs(tower(pixels) - wanted[0].numpy()).max() < 1e-5
    assert (tower(pixels) == tower(pixels)).all()
    assert np.abs(tower(-pixels) - wanted[0].numpy()).max() > 0.1


def test_a_judge_is_an_image_encoder_too(folder: Path) -> None:
    assert open_encoder(folder).spec.vision == open_judge(folder, nobody).spec.vision


def test_bfloat16_and_the_old_end_of_a_text(folder: Path, tmp_path: Path) -> None:
    """transformers before 4.31 wrote an eos_token_id of 2, which stands for the highest number."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rounded = {name: value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(rounded, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    judges = [Judge(open_judge(path, nobody), "onnxruntime", threads=1) for path in (folder, tmp_path)]
    whole, half = ([judge.text(text) for text in TEXTS] for judge in judges)
    assert 0 < np.abs(np.stack(whole) - np.stack(half)).max() < 0.05


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "missing is not there; give the folder of a CLIPModel, as transformers saves one"),
        ("file", "file is no folder; give the folder of a CLIPModel"),
        ("empty", "empty has no config.json; give the folder of a CLIPModel"),
        ("diffusers", "is a whole model in diffusers' layout, which draws pictures; give the folder of a CLIPModel"),
    ],
)
def test_what_is_no_folder_of_clip_is_told_what_it_is(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    make_checkpoint(tmp_path / "diffusers")
    with pytest.raises(CheckpointError) as raised:
        open_judge(tmp_path / name, nobody)
    assert str(raised.value).startswith(f"judge {tmp_path}") and words in str(raised.value)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("config.json", {"architectures": ["SiglipModel"]}, 'architectures is ["SiglipModel"]; a judge is a CLIPModel'),
        ("config.json", {"vision_config": {"patch_size": 10}}, "image_size 224 is not a multiple of patch_size 10"),
        ("config.json", {"vision_config": [1]}, "vision_config is [1]; it must be an object"),
        (
            "config.json",
            {"vision_config_dict": {"hidden_size": 1}},
            "(vision_config_dict): hidden_size is 1; vision_config says otherwise",
        ),
        ("config.json", {"projection_dim": 21}, "does not fit its config"),
        ("preprocessor_config.json", {"resample": 2}, "resample is 2; latentd does only 3"),
        ("preprocessor_config.json", {"crop_size": 224}, "crop_size is 224; the tower sees pictures of 30x30"),
        ("preprocessor_config.json", {"image_std": [0.0, 1.0, 1.0]}, "it must be three numbers above 0, up to 1"),
    ],
)
def test_a_folder_that_is_no_judge_is_refused(
    folder: Path, tmp_path: Path, file: str, changes: dict[str, object], words: str
) -> None:
    for each in folder.iterdir():
        (tmp_path / each.name).symlink_to(each)
    values = json.loads((folder / file).read_text()) | changes
    (tmp_path / file).unlink()
    (tmp_path / file).write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as raised:
        Judge(open_judge(tmp_path, nobody), "onnxruntime", threads=1)
    assert words in str(raised.value) and "\n" not in str(raised.value)
