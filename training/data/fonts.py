"""Draws every listed thing from two fonts, once, into a folder that training reads: `make demo-data`.

Names come from Unicode's emoji-test.txt; the things that are drawn are those listed in data/things.txt.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.data.scene import Glyph
from training.errors import TrainingError
from training.files import write, write_json
from training.sheet import sheet, write_png

LISTED = Path(__file__).with_name("things.txt")
THINGS = "things.json"
# Debian's package and its file.
NAMES = ("unicode-data", Path("/usr/share/unicode/emoji/emoji-test.txt"))
FONTS = {
    "color": ("fonts-noto-color-emoji", Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"), 109),
    "ink": ("fonts-symbola", Path("/usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf"), 128),
}
LICENCES = """\
The pictures in this folder were drawn from two fonts of Debian packages, and are free to use:

- color: Noto Color Emoji (fonts-noto-color-emoji); pictures under Apache-2.0, the font under the SIL Open Font Licence
- ink: Symbola (fonts-symbola), free for any use

Their names are those of Unicode's emoji-test.txt (unicode-data), under the Unicode Licence.
"""
_MISSING = "\U0010fffd"  # no font has it, so it is drawn as what stands for a missing character


def listed_things() -> list[str]:
    """Return the names of the things that are drawn, in their order."""
    return [line for line in LISTED.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def read_names(path: Path) -> dict[str, str]:
    """Read emoji-test.txt: characters by name, of those that are one character. Errors: TrainingError."""
    names: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error}") from None
    for line in lines:
        match = re.match(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E[\d.]+ (.+)", line)
        if match:
            codes = [code for code in match[1].split() if code != "FE0F"]  # asks for colour
            if len(codes) == 1:
                names.setdefault(
                    match[2].lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"), chr(int(codes[0], 16))
                )
    return names


def pen_of(style: str) -> Callable[[str], Image.Image | None]:
    """Return what draws a character, RGBA; it returns None for one that the font lacks. Errors: TrainingError."""
    package, path, size = FONTS[style]
    try:
        font = ImageFont.truetype(path, size)
    except OSError:
        raise TrainingError(f"{path} is not there: apt-get install {package}") from None

    def draw(character: str) -> Image.Image | None:
        canvas = Image.new("RGBA", (2 * size, 2 * size), (255, 255, 255, 0) if style == "color" else (0, 0, 0, 0))
        pen = ImageDraw.Draw(canvas)
        pen.text((size // 4, size // 4), character, font=font, fill="black", embedded_color=style == "color")
        return canvas if canvas.getchannel("A").getbbox() else None

    missing = draw(_MISSING)
    blank = None if missing is None else missing.tobytes()
    return lambda character: None if (drawn := draw(character)) is None or drawn.tobytes() == blank else drawn


def write_glyphs(folder: Path) -> list[str]:
    """Draw all things in both styles into `folder`; return their names. Errors: TrainingError."""
    if not NAMES[1].exists():
        raise TrainingError(f"{NAMES[1]} is not there: apt-get install {NAMES[0]}")
    characters, things = read_names(NAMES[1]), listed_things()
    pens = {style: pen_of(style) for style in FONTS}
    unknown = [thing for thing in things if thing not in characters]
    if unknown:
        raise TrainingError(f"{NAMES[1]} has no character called {unknown[0]!r}, and {len(unknown) - 1} others")
    for style, pen in pens.items():
        shown = []
        for thing in things:
            drawn = pen(characters[thing])
            if drawn is None:
                raise TrainingError(f"{FONTS[style][1]} has no picture of {thing!r}")
            picture = Glyph.of(drawn).levels[0]
            write_png(folder / style / f"{file_name(thing)}.png", picture)
            ground = Image.new("RGBA", picture.size, "white")
            ground.alpha_composite(picture)
            shown.append(np.asarray(ground.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)))
        write_png(folder / f"sheet-{style}.png", sheet(shown, 24, things))
    write_json(folder / THINGS, things)
    write(folder / "LICENCES.md", LICENCES.encode())
    return things


def file_name(thing: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", thing.lower()).strip("-")
