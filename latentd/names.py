"""Where the pictures and films of one run go: decided, and tried, before anything is sent."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentd.picture import format_of

_SLUG = 48  # characters; four bytes each still fit the 255 bytes of a file name
_SUFFIX = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@dataclass(frozen=True)
class Place:
    """Names the files of one picture; `film` None when no film was asked for."""

    picture: Path
    film: Path | None


def slug(prompt: str) -> str:
    """Turn `A red apple!` into `a-red-apple`: letters and digits of any alphabet, at most 48."""
    return re.sub(r"[\W_]+", "-", prompt.lower())[:_SLUG].strip("-") or "picture"


def is_folder(output: str) -> bool:
    """Return whether -o means a folder: nothing said (the current one), a trailing slash, or one that is there."""
    return output == "" or output.endswith(("/", os.sep)) or Path(output).is_dir()


def places(prompts: Sequence[str], images: int, output: str, format: str, film: Path | None) -> list[list[Place]]:
    """List [prompts][images] places, no two alike. Raises ValueError for two files of one name, or a bad suffix.

    A name that the caller gave is used as it is, and numbered when there are several pictures; a name made from the
    prompt steps aside for files that exist.
    """
    total = len(prompts) * images
    folder = is_folder(output)
    named = Path(output)
    if not folder and not named.suffix:
        named = named.with_name(named.name + _SUFFIX[format])
    if not folder:
        format_of(named)
    taken: set[Path] = set()
    rows: list[list[Place]] = []
    for which, prompt in enumerate(prompts):
        row: list[Place] = []
        for index in range(images):
            number = which * images + index + 1 if total > 1 else 0
            picture = _free(named / (slug(prompt) + _SUFFIX[format]), taken) if folder else _numbered(named, number)
            place = Place(picture, _numbered(film, number) if film else None)
            for path in (place.picture, place.film):
                if path and _key(path) in taken:
                    raise ValueError(f"{path} would be written twice; give --film and -o different names")
                if path:
                    taken.add(_key(path))
            row.append(place)
        rows.append(row)
    return rows


def try_writing(path: Path) -> None:
    """Raise the OSError that writing `path` would raise, and leave nothing behind. Makes no folder."""
    existed = path.exists()
    with open(path, "ab"):
        pass
    if not existed:
        path.unlink()


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path


def _free(path: Path, taken: set[Path]) -> Path:
    number, free = 1, path
    while _key(free) in taken or free.exists():
        number += 1
        free = _numbered(path, number)
    return free


def _key(path: Path) -> Path:
    return Path(os.path.abspath(path))
