"""What is read of a model's card, which is anybody's text."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.doors.http.card import Card, read_card


def card(folder: Path, text: str | bytes) -> Card:
    (folder / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_card(folder)


def test_a_paragraph_and_prompts(tmp_path: Path) -> None:
    front = "---\nlicense: mit\nwidget:\n- text: a red apple\n- text: [no]\n- url: x\n- text: fox\n---\n"
    text = f"{front}\n# Name\n\n| a |\n\nDraws\nthings.\n\nMore.\n"
    (tmp_path / "concepts.json").write_text('{"things": ["fox", 3, "", "red apple"]}')
    assert card(tmp_path, text) == Card("Draws things.", ["a red apple", "fox"], ["fox", "red apple"])


@pytest.mark.parametrize("text", ["", "[", "3", "[]", '{"things": 3}', '{"things": [1]}', "[" * 5000])
def test_a_list_that_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "concepts.json").write_text(text)
    assert card(tmp_path, "Draws things.").things == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# Name\n",
        b"\xff\xfe\x00",
        "---\nwidget: 3\n---\n",
        "---\n[\n---\n",
        "---\n- 1\n---\n",
        "---\n",
        "![x](y)\n",
    ],
)
def test_a_card_that_says_nothing(tmp_path: Path, text: str | bytes) -> None:
    assert card(tmp_path, text).prompts == []


def test_no_card(tmp_path: Path) -> None:
    assert read_card(tmp_path) == read_card(tmp_path / "model.safetensors") == Card()


def test_long_ones_are_cut(tmp_path: Path) -> None:
    about = card(tmp_path, "word " * 1000).about
    assert len(about) <= 604 and about.endswith("word ...")


def test_the_demo_models_card_has_prompts_to_begin_with() -> None:
    known = read_card(Path(__file__).parents[4] / "demo" / "small-things")
    assert "red apple, color style" in known.prompts and len(known.prompts) >= 8
    assert "400 things" in known.about and len(known.things) == 400
