"""Pictures in a terminal: each character cell is two pixels, an upper half block in 24-bit colour."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from io import BytesIO

from PIL import Image

from latentd.events import Event, Preview
from latentd.events import Image as Finished
from latentd.progress import Tally, title

_LARGEST = 48  # columns of one picture; 48x48 pixels are enough to see what it becomes
_SMALLEST = 12
_RESET = "\x1b[0m"


def can_draw() -> bool:
    """Return whether stdout is a terminal that moves its cursor and shows half blocks."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "") in ("", "dumb"):
        return False
    try:
        "▀".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def half_blocks(image: Image.Image, columns: int, rows: int) -> list[str]:
    """Draw the picture as at most `rows` lines of at most `columns` cells, aspect kept; a cell is 1x2 pixels."""
    scale = min(columns / image.width, 2 * rows / image.height)
    width = max(1, round(image.width * scale))
    height = max(1, round(image.height * scale / 2)) * 2
    pixels = image.convert("RGB").resize((width, height)).tobytes()  # [height, width, 3]
    lines: list[str] = []
    for y in range(0, height, 2):
        cells: list[str] = []
        for x in range(width):
            top, bottom = (3 * (row * width + x) for row in (y, y + 1))
            r, g, b = pixels[top : top + 3]
            under = ";".join(map(str, pixels[bottom : bottom + 3]))
            cells.append(f"\x1b[38;2;{r};{g};{b};48;2;{under}m▀")
        lines.append("".join(cells) + _RESET)
    return lines


class Screen:
    """Shows progress as pictures: the newest previews side by side, and a line for each prompt beneath.

    Draws on stdout, over what it drew before; the pictures that do not fit are left out, the lines never.
    """

    def __init__(self, prompts: Sequence[str]) -> None:
        self._prompts = prompts
        self._tallies = [Tally() for _ in prompts]
        self._pictures: dict[tuple[int, int], Image.Image] = {}  # (request, index) -> at most 2x the pixels drawn
        self._drawn = 0  # lines on the screen

    def event(self, request: int, event: Event) -> None:
        self._tallies[request].add(event)
        if isinstance(event, Preview | Finished):
            image = Image.open(BytesIO(event.jpeg if isinstance(event, Preview) else event.data))
            image.draft("RGB", (2 * _LARGEST, 2 * _LARGEST))  # a JPEG is decoded at 1/4 size or less
            image.thumbnail((2 * _LARGEST, 2 * _LARGEST))
            self._pictures[request, event.index] = image
        self._draw()

    def say(self, line: str, error: bool = False) -> None:
        self._erase()
        print(line, file=sys.stderr if error else sys.stdout, flush=True)
        self._draw()

    def close(self) -> None:
        self._drawn = 0  # the last frame stays

    def _erase(self) -> None:
        if self._drawn:
            sys.stdout.write(f"\x1b[{self._drawn}A\r\x1b[J")
            sys.stdout.flush()
        self._drawn = 0

    def _draw(self) -> None:
        lines = self._lines(*shutil.get_terminal_size())
        self._erase()
        sys.stdout.write("".join(line + "\n" for line in lines))
        sys.stdout.flush()
        self._drawn = len(lines)

    def _lines(self, columns: int, rows: int) -> list[str]:
        captions = [
            f"{title(prompt)}  {tally.done}/{tally.total or '?'}  {tally.state}"[: columns - 1]
            for prompt, tally in zip(self._prompts, self._tallies, strict=True)
        ][: max(1, rows - 2)]
        room = rows - len(captions) - 1  # the cursor keeps the last row
        if not self._pictures or room < 2:
            return captions
        cell = max(_SMALLEST, min(_LARGEST, columns // len(self._pictures) - 1))
        shown = sorted(self._pictures)[: max(1, columns // (cell + 1))]
        return [*_beside([half_blocks(self._pictures[key], min(cell, columns - 1), room) for key in shown]), *captions]


def _beside(tiles: Sequence[list[str]]) -> list[str]:
    """Put tiles next to each other, tops aligned."""
    height = max(len(tile) for tile in tiles)
    widths = [tile[0].count("▀") for tile in tiles]
    padded = [[*tile, *[" " * width] * (height - len(tile))] for tile, width in zip(tiles, widths, strict=True)]
    return [" ".join(parts) for parts in zip(*padded, strict=True)]
