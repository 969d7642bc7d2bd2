"""The size of a picture in words: "512x768" is 512 pixels wide and 768 high."""

from __future__ import annotations

import re

Size = tuple[int, int]  # width and height in pixels


def parse_size(text: str) -> Size:
    """Read one size. Errors: ValueError."""
    match = re.fullmatch(r"\s*(\d{1,5})x(\d{1,5})\s*", text, re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is not WIDTHxHEIGHT")
    return int(match[1]), int(match[2])


def parse_sizes(text: str) -> list[Size]:
    """Read sizes that are separated by commas, each once. Errors: ValueError."""
    return list(dict.fromkeys(parse_size(part) for part in text.split(",")))
