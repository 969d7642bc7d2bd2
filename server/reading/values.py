"""How the text of a setting becomes its value, and what its errors say that it takes.

Each of these raises ValueError for a text that is none of its values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.size import parse_sizes

Reads = tuple[Callable[[str], Any], str]  # and what it takes, in words


def number(least: float, most: float, whole: bool = True) -> Reads:
    def parse(text: str) -> float:
        value = int(text) if whole else float(text)
        if not least <= value <= most:
            raise ValueError
        return value

    return parse, f"{'an integer' if whole else 'a number'} from {least:.15g} to {most:.15g}"


def choice(*choices: str) -> Reads:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return parse, "one of " + ", ".join(choices)


def sizes_of(text: str) -> tuple[tuple[int, int], ...]:
    return tuple(parse_sizes(text))


def most(number: Reads) -> Reads:
    """Read the largest number of a list, for a variable that another program reads as a list."""
    parse, takes = number
    return lambda text: max(parse(part) for part in text.split(",")), takes + ", or several as 1,2: the largest counts"


def path(text: str) -> Path:
    if "://" in text:
        raise ValueError
    return Path(text).expanduser()


PATH: Reads = (path, "a path")
HOST: Reads = (lambda text: text.strip("[]"), "an address")
PORT = number(0, 65535)


def url(text: str) -> str:
    parts = urlsplit(text)
    # A password on a command line is everybody's on the machine; OTEL_EXPORTER_OTLP_HEADERS has a place for one.
    known = parts.scheme in ("http", "https") and parts.hostname and parts.username is None and parts.password is None
    if not known or parts.query or parts.fragment or parts.port == 0 or re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError
    return text


URL: Reads = (url, "a URL as http://localhost:4318")


def port_or_off(text: str) -> int | None:
    """Read a port; None is off, which YAML reads as False."""
    return None if text.lower() in ("off", "false") else PORT[0](text)  # type: ignore[return-value]


def on_off(text: str) -> bool:
    """Read on or off, as YAML has them too. Errors: ValueError."""
    if text.lower() not in ("on", "true", "1", "yes", "off", "false", "0", "no"):
        raise ValueError
    return text.lower() in ("on", "true", "1", "yes")


ON_OFF: Reads = (on_off, "on or off")


def names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    if not all(re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name) for name in names):
        raise ValueError
    return names
