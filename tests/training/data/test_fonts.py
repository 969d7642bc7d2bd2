"""Names from emoji-test.txt, and what is said where a font is missing. Fonts themselves no test needs."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from training.data import fonts
from training.data.fonts import file_name, listed_things, read_names
from training.data.glyphs import read_glyphs
from training.errors import TrainingError
from training.files import write_json
from training.sheet import write_png

LINES = """\
# group: Animals & Nature
1F98A                                      ; fully-qualified     # 🦊 E3.0 fox
2600 FE0F                                  ; fully-qualified     # ☀️ E0.6 sun
2600                                       ; unqualified         # ☀ E0.6 sun
1F468 1F3FB                                ; fully-qualified     # 👨🏻 E1.0 man: light skin tone
1F452                                      ; fully-qualified     # 👒 E0.6 woman\u2019s hat
"""


def test_names_are_of_single_characters(tmp_path: Path) -> None:
    (tmp_path / "emoji-test.txt").write_text(LINES, encoding="utf-8")
    assert read_names(tmp_path / "emoji-test.txt") == {"fox": "\U0001f98a", "sun": "☀", "woman's hat": "\U0001f452"}


def test_listed_things_have_names_and_files_of_their_own() -> None:
    things = listed_things()
    assert len(things) >= 390 and len(set(things)) == len(things) == len({file_name(thing) for thing in things})
    assert all(thing == thing.lower().strip() for thing in things)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "NAMES", ("unicode-data", tmp_path / "none.txt"))
    with pytest.raises(TrainingError, match=r"none.txt is not there: apt-get install unicode-data"):
        fonts.write_glyphs(tmp_path)
    monkeypatch.setitem(fonts.FONTS, "ink", ("fonts-symbola", tmp_path / "none.ttf", 20))
    with pytest.raises(TrainingError, match=r"none.ttf is not there: apt-get install fonts-symbola"):
        fonts.pen_of("ink")


def test_glyphs_are_read_as_they_were_written(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="make demo-data draws it"):
        read_glyphs(tmp_path)
    write_json(tmp_path / "things.json", ["Fox", "sun"])
    for style in ("color", "ink"):
        for name in ("fox", "sun"):
            write_png(tmp_path / style / f"{name}.png", Image.new("RGBA", (96, 96), (0, 10, 20, 255)))
    things, glyphs = read_glyphs(tmp_path)
    assert things == ["Fox", "sun"] and len(glyphs) == 4
    assert glyphs["sun", "ink"].levels[0].getpixel((5, 5)) == (0, 10, 20, 255)
    (tmp_path / "ink/sun.png").write_bytes(b"no")
    with pytest.raises(TrainingError, match=r"ink/sun.png cannot be read as a picture"):
        read_glyphs(tmp_path)
