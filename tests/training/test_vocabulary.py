"""The small tokenizer splits what captions say as CLIP's own does, and transformers reads it alike."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.clip_vocabulary import tokenizer_files as whole_files
from pipeline.networks import TextSpec
from pipeline.source import Folder
from pipeline.tokenizer import ClipTokenizer
from training.data.drawn import DrawnPictures
from training.data.fonts import listed_things
from training.recipe import read_recipe
from training.vocabulary import chosen_pairs, tokenizer_files

TEXTS = ["a jack-o-lantern on blue, color style", "two woman's boots", "t-rex: 3 crêpes", "tropical fish"]
SIZE = 700


def spec(size: int) -> TextSpec:
    return TextSpec(size, 32, 8, 8, 1, 1, "gelu", 1e-5)


def written(folder: Path, files: dict[str, bytes]) -> Path:
    (folder / "tokenizer").mkdir(parents=True)
    for name, data in files.items():
        (folder / "tokenizer" / name).write_bytes(data)
    return folder


def tokenizer_of(folder: Path, size: int) -> tuple[ClipTokenizer, dict[int, str]]:
    """A tokenizer, and the text of each of its tokens."""
    numbers = json.loads((folder / "tokenizer/vocab.json").read_text())
    return ClipTokenizer(Folder(folder), spec(size)), {number: word for word, number in numbers.items()}


def words(folder: Path, text: str, size: int) -> list[str]:
    tokenizer, names = tokenizer_of(folder, size)
    return [names[number] for number in tokenizer.words(text)]


def test_captions_are_split_as_clip_splits_them(tmp_path: Path) -> None:
    ours = written(tmp_path / "ours", tokenizer_files(TEXTS, SIZE, 32))
    clip = written(tmp_path / "clip", whole_files(pad="<|endoftext|>", tokens=32))
    for text in TEXTS:
        assert words(ours, text, SIZE) == words(clip, text, 49408)
    assert words(ours, "zyzzyva", SIZE), "what no caption says is spelt"


def test_the_demo_models_captions_are_split_as_clip_splits_them(tmp_path: Path) -> None:
    recipe = read_recipe(Path(__file__).parents[2] / "training/recipes/small-things.yaml")
    texts = DrawnPictures({}, listed_things(), recipe.data, recipe.seed).texts()
    ours = written(tmp_path / "ours", tokenizer_files(texts, recipe.data.vocabulary, 32))
    clip = written(tmp_path / "clip", whole_files(pad="<|endoftext|>", tokens=32))
    mine = tokenizer_of(ours, recipe.data.vocabulary), tokenizer_of(clip, 49408)
    split = [[names[word] for word in tokenizer.words(" ".join(texts))] for tokenizer, names in mine]
    assert split[0] == split[1] and len(split[0]) > 8 * len(listed_things())


def test_with_too_little_room_the_most_used_pairs_stay() -> None:
    pairs = chosen_pairs(["apple"] * 3 + ["boots"], 3)
    assert len(pairs) == 3 and all(pair.replace(" ", "").removesuffix("</w>") in "apple" for pair in pairs)


def test_transformers_reads_both_forms_alike(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = written(tmp_path, tokenizer_files(TEXTS, SIZE, 32))
    theirs = AutoTokenizer.from_pretrained(ours / "tokenizer")
    mine = ClipTokenizer(Folder(ours), spec(SIZE))
    for text in (*TEXTS, "", "Zyzzyva  42!"):
        assert theirs(text, padding="max_length", truncation=True)["input_ids"] == mine.encode(text).ids.tolist()
    assert theirs.eos_token_id == theirs.pad_token_id == SIZE - 1
