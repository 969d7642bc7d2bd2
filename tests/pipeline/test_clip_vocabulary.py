"""The vocabulary that ships is CLIP's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from pipeline.clip_vocabulary import END, SIZE, START, merges, tokenizer_files, vocabulary
from pipeline.spec import TextSpec
from pipeline.tokenizer import ClipTokenizer


def test_it_is_openais() -> None:
    pairs = merges()
    words = vocabulary(pairs)
    assert (len(pairs), len(words), SIZE) == (48894, 49408, 49408)
    assert (words[START], words[END], words["!"], words["!</w>"]) == (49406, 49407, 0, 256)
    assert sorted(words.values()) == list(range(SIZE))
    # Of the lines 2 to 48,895 of bpe_simple_vocab_16e6.txt in the wheel of open_clip_torch 3.3.0.
    assert (
        hashlib.sha256("\n".join((*pairs, "")).encode()).hexdigest()
        == "d308b7377a8ceaa9707a21614fe8c831b9196e197b7aeb69833359362907af02"
    )


def write_tokenizer(folder: Path, pad: str) -> None:
    folder.mkdir()
    for name, data in tokenizer_files(pad=pad, tokens=77).items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize(("pad", "pad_id"), [("<|endoftext|>", 49407), ("!", 0)])
def test_the_folder_is_a_clip_tokenizer(tmp_path: Path, pad: str, pad_id: int) -> None:
    write_tokenizer(tmp_path / "tokenizer", pad)
    theirs = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    # Ids that CLIP's users have published.
    known = {
        "a photo of a cat": [320, 1125, 539, 320, 2368],
        "a photograph of an astronaut riding a horse": [320, 8853, 539, 550, 18376, 6765, 320, 4558],
    }
    for text, ids in known.items():
        whole = [49406, *ids, 49407, *[pad_id] * (75 - len(ids))]
        assert theirs(text, padding="max_length", max_length=77).input_ids == whole
    assert (theirs.pad_token_id, theirs.model_max_length) == (pad_id, 77)
    marks = json.loads((tmp_path / "tokenizer/special_tokens_map.json").read_bytes())
    assert marks["pad_token"] == pad and marks["bos_token"]["content"] == START


def test_our_tokenizer_reads_it(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer", "!")
    text = TextSpec(SIZE, tokens=77, width=64, hidden=256, layers=1, heads=1, activation="gelu", eps=1e-5)
    ids = ClipTokenizer(tmp_path, text).encode("A  Photo of a\tcat").ids
    assert ids[:8].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
