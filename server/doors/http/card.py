"""What a model's card tells its users: a paragraph about it, prompts to begin with, and perhaps all that it can draw.

A card is README.md beside the weights. Its prompts stand where Hugging Face's widgets look for them: a list `widget` of
mappings with `text`, in YAML between two lines of `---` at the top. A model that draws a closed list of things names
them in concepts.json beside the card, as a list `things`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

_MOST_BYTES, _MOST_PROMPTS, _LONGEST = 64 << 10, 12, 600
_MOST_THINGS, _LONGEST_THING = 2000, 64


@dataclass(frozen=True)
class Card:
    about: str = ""
    prompts: list[str] = field(default_factory=list)
    things: list[str] = field(default_factory=list)  # all that it can draw; none: it draws whatever is asked for


def read_card(checkpoint: Path) -> Card:
    """Read the card of a checkpoint's folder; an empty one where there is none, or none that can be read.

    A checkpoint that is a file has none: beside it lies whatever else its folder holds.
    """
    if (text := _beginning(checkpoint / "README.md")) is None:
        return Card()
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    return Card(
        about=_about(text[match.end() :] if match else text),
        prompts=_prompts(match[1]) if match else [],
        things=_things(_beginning(checkpoint / "concepts.json") or ""),
    )


def _beginning(path: Path) -> str | None:
    """Return a file's text up to a limit; None where there is none to read."""
    if not path.is_file():  # no pipe
        return None
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode(errors="replace")
    except OSError:
        return None


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


def _things(text: str) -> list[str]:
    try:
        known = json.loads(text)
    except (ValueError, RecursionError):
        return []
    things = known.get("things") if isinstance(known, dict) else None
    named = [thing for thing in things if isinstance(thing, str)] if isinstance(things, list) else []
    return [thing for thing in named if 0 < len(thing) <= _LONGEST_THING][:_MOST_THINGS]
