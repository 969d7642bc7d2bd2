"""What a model's card tells its users: a paragraph about it, and prompts to begin with.

A card is README.md beside the weights. Its prompts stand where Hugging Face's widgets look for them: a list `widget` of
mappings with `text`, in YAML between two lines of `---` at the top.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

_MOST_BYTES, _MOST_PROMPTS, _LONGEST = 64 << 10, 12, 600


@dataclass(frozen=True)
class Card:
    about: str = ""
    prompts: list[str] = field(default_factory=list)


def read_card(checkpoint: Path) -> Card:
    """Read the card of a checkpoint's folder; an empty one where there is none, or none that can be read.

    A checkpoint that is a file has none: beside it lies whatever else its folder holds.
    """
    path = checkpoint / "README.md"
    if not path.is_file():  # no pipe
        return Card()
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode(errors="replace")
    except OSError:
        return Card()
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return Card(_about(text[match.end() :] if match else text), _prompts(match[1]) if match else [])


def _about(text: str) -> str:
    """Return the first paragraph of prose: no heading, table, list, picture, quotation or code."""
    for paragraph in re.split(r"\n\s*\n", text):
        words = " ".join(paragraph.split())
        if words and words[0] not in "#|-*!<>`[=" and not paragraph.startswith("    "):
            return words if len(words) <= _LONGEST else words[:_LONGEST].rsplit(" ", 1)[0] + " ..."
    return ""


def _prompts(front_matter: str) -> list[str]:
    try:
        meta = yaml.safe_load(front_matter)
    except (yaml.YAMLError, ValueError, RecursionError):
        return []
    widgets = meta.get("widget") if isinstance(meta, dict) else None
    texts = [widget.get("text") for widget in widgets if isinstance(widget, dict)] if isinstance(widgets, list) else []
    return [text for text in texts if isinstance(text, str) and 0 < len(text) <= _LONGEST][:_MOST_PROMPTS]
