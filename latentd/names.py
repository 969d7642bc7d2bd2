"""Where the pictures and films of one run go: decided, and tried, before anything is sent.

A name that the caller gave is his: what is there is replaced. A name made here, from the prompt or with a number, never
replaces a file: of one stem, `apple.png`, `apple-2.png`, .., numbers go on after the highest that is there.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentd.picture import format_of

STDOUT = "-"
_SLUG = 48  # characters; four bytes each still fit the 255 bytes of a file name
_SUFFIX = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@dataclass(frozen=True)
class Target:
    """Names one file to write. `stem`: what is numbered until nothing is there; None where the caller gave the name."""

    path: Path
    stem: Path | None

    def claim(self) -> tuple[Path, bool]:
        """Return the path to write now, and whether a file there is replaced.

        A name made here becomes an empty file, as another run may have taken it since it was chosen. Raises OSError.
        """
        path = self.path
        if self.stem is None:
            return path, path.exists()
        while True:
            try:
                with open(path, "xb"):
                    return path, False
            except FileExistsError:
                path = _numbered(self.stem, _highest(self.stem) + 1)


@dataclass(frozen=True)
class Place:
    """Names the files of one picture: `picture` None is stdout, `film` None is none."""

    picture: Target | None
    film: Target | None


def slug(prompt: str) -> str:
    """Turn `A red apple!` into `a-red-apple`: letters and digits of any alphabet, at most 48."""
    return re.sub(r"[\W_]+", "-", prompt.lower())[:_SLUG].strip("-") or "picture"


def is_folder(output: str) -> bool:
    """Return whether -o means a folder: nothing said (the current one), a trailing slash, or one that is there."""
    return output == "" or output.endswith(("/", os.sep)) or (output != STDOUT and Path(output).is_dir())


def file_format(output: str, format: str | None, otherwise: str) -> str:
    """Return the format of the files: what -o's suffix names, else `format`, else `otherwise`.

    Raises ValueError for a suffix that names none, and for a `format` that contradicts it.
    """
    if output == STDOUT or is_folder(output) or not Path(output).suffix:
        return format or otherwise
    named = format_of(Path(output))
    if format and format != named:
        raise ValueError(
            f"-o {output} is a {named} file by its suffix, and --format says {format}; leave one of them out"
        )
    return named


def places(prompts: Sequence[str], images: int, output: str, format: str, film: Path | None) -> list[list[Place]]:
    """List [prompts][images] places, no two alike; `format` as file_format returns it.

    Raises ValueError for two files of one name, and for several pictures into stdout.
    """
    total = len(prompts) * images
    if output == STDOUT and total > 1:
        raise ValueError(f"-o - writes one picture to stdout, and these are {total}; name a file or a folder")
    folder = is_folder(output)
    named = Path(output)
    if not folder and not named.suffix:
        named = named.with_name(named.name + _SUFFIX[format])
    wanted = [named / (slug(prompt) + _SUFFIX[format]) if folder else named for prompt in prompts]
    wanted = [path for path in wanted for _ in range(images)]
    stems = dict.fromkeys(_key(path) for path in wanted)
    # A film has the number of its picture, where the pictures have one name; else films are counted by themselves.
    beside = film if len(stems) == 1 and output != STDOUT else None
    pictures = [None] * total if output == STDOUT else list(_targets(wanted, not folder, beside))
    films = list(_targets([film] * total, True, wanted[0] if beside else None)) if film else [None] * total
    row = [Place(picture, moving) for picture, moving in zip(pictures, films, strict=True)]
    seen: set[Path] = set()
    for target in (target for place in row for target in (place.picture, place.film) if target):
        if _key(target.path) in seen:
            raise ValueError(f"{target.path} would be written twice; give --film and -o different names")
        seen.add(_key(target.path))
    return [row[start : start + images] for start in range(0, total, images)]


def try_writing(path: Path) -> None:
    """Raise the OSError that writing `path` would raise, and leave nothing behind. Makes no folder.

    What is taken away again is what was made here, and no file of another run that begins at the same moment.
    """
    try:
        with open(path, "xb"):
            pass
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):  # it was another run's try, which has gone again
            os.close(os.open(path, os.O_WRONLY))
        return
    path.unlink(missing_ok=True)


def _targets(wanted: Sequence[Path], given: bool, beside: Path | None) -> Iterator[Target]:
    """Yield a target for each wanted path, numbered where several want the same one, or where it is there.

    `beside`: another path whose numbers are passed over too.
    """
    many = Counter(map(_key, wanted))
    next_of: dict[Path, int] = {}
    for path in wanted:
        key = _key(path)
        if many[key] == 1 and (given or not _highest(path)):
            yield Target(path, None if given else path)
            continue
        if key not in next_of:
            next_of[key] = 1 + max(_highest(path), _highest(beside) if beside and many[key] > 1 else 0)
        yield Target(_numbered(path, next_of[key]), path)
        next_of[key] += 1


def _highest(path: Path) -> int:
    """Return the highest number that files of this name have: `apple.png` has 1, `apple-7.png` 7; 0 without any."""
    pattern = re.compile(re.escape(path.stem) + r"-(\d{1,9})" + re.escape(path.suffix))
    try:
        names = os.listdir(path.parent)
    except OSError:  # no folder yet, or none that can be listed: claim() finds what is there
        names = []
    numbers = [int(match[1]) for name in names if (match := pattern.fullmatch(name))]
    return max([*numbers, 1 if os.path.lexists(path) else 0])


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _key(path: Path) -> Path:
    return Path(os.path.abspath(path))
