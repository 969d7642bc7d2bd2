"""A folder of pictures with captions: `metadata.jsonl`, as other trainers read it, or a `.txt` beside each picture."""

from __future__ import annotations

import hashlib
import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.arrays import Pixels
from training.data.sample import Sample
from training.draws import permuted
from training.errors import TrainingError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
METADATA = "metadata.jsonl"
LEAST = 4  # pictures: some to learn from, and one that is held out
_MOST_PIXELS = 64_000_000  # of one picture, before it is decoded
_LONGEST = 2000  # characters of a caption


class FolderPictures:
    """Holds the pictures of a folder, cut to squares of one size; every twentieth is held out, and one at least."""

    def __init__(self, folder: Path, side: int, seed: int) -> None:
        """Read them all, so that what is wrong with one is said before anything is trained. Errors: TrainingError."""
        captions = read_captions(folder)
        if len(captions) < LEAST:
            found = "no pictures" if not captions else f"{len(captions)} pictures"
            raise TrainingError(f"{folder} has {found} ({', '.join(ENDINGS)}); training needs at least {LEAST}")
        self.side, self.things, self.styles, self._seed = side, (), (), seed
        paths = sorted(captions, key=lambda path: (zlib.crc32(path.name.encode()), path.name))
        held = max(1, len(paths) // 20)
        every = [Sample(read_picture(path, side), captions[path], captions[path]) for path in paths]
        self._held, self._seen = every[:held], every[held:]
        self.count: int | None = len(self._seen)

    @property
    def summary(self) -> str:
        return f"{len(self._seen) + len(self._held)} pictures, {len(self._held)} of them held out"

    @property
    def digest(self) -> str:
        seal = hashlib.sha256()
        for sample in (*self._held, *self._seen):
            seal.update(sample.caption.encode() + b"\0" + sample.pixels.tobytes())
        return seal.hexdigest()[:16]

    def texts(self) -> list[str]:
        return [sample.caption for sample in (*self._held, *self._seen)]

    def sample(self, purpose: str, index: int) -> Sample:
        return self._seen[permuted(self._seed, purpose, index, len(self._seen))]

    def held(self, purpose: str, index: int) -> Sample:
        return self._held[index % len(self._held)]

    def companion(self, purpose: str, index: int) -> Sample:
        """Return the picture itself, as nobody knows which others share its style (Ye et al. 2023, section 3.2)."""
        return self.sample(purpose, index)


def read_captions(folder: Path) -> dict[Path, str]:
    """Read which pictures there are, and their captions. Errors: TrainingError naming the file."""
    if not folder.is_dir():
        raise TrainingError(f"data.folder {folder} is no folder")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if (folder / METADATA).exists():
        captions = _listed(folder)
        if left := [path for path in pictures if path not in captions]:
            raise TrainingError(f"{left[0]} has no caption: {METADATA} is there and does not name it")
    else:
        captions = {path: _beside(path) for path in pictures}
    for path, caption in captions.items():
        if not caption.strip():
            raise TrainingError(f"{path} has an empty caption")
        if len(caption) > _LONGEST:
            raise TrainingError(f"{path} has a caption of {len(caption)} characters; the most is {_LONGEST}")
    return captions


def _listed(folder: Path) -> dict[Path, str]:
    place = folder / METADATA
    rows: dict[Path, str] = {}
    for number, line in enumerate(_text(place).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, caption = row["file_name"], row["text"]
            assert isinstance(name, str) and isinstance(caption, str)
        except (ValueError, KeyError, TypeError, AssertionError, RecursionError):
            raise TrainingError(f'{place}, line {number}: it must be {{"file_name": "..", "text": ".."}}') from None
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise TrainingError(f"{place}, line {number}: {name!r:.80} lies outside the folder")
        if path in rows:
            raise TrainingError(f"{place}, line {number}: {name!r:.80} is named by a line before")
        rows[path] = " ".join(caption.split())
    return rows


def _beside(picture: Path) -> str:
    place = picture.with_suffix(".txt")
    if not place.exists():
        raise TrainingError(f"{picture} has no caption: neither {place.name} nor {METADATA} is there")
    return " ".join(_text(place).split())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read as UTF-8: {error}") from None


def read_picture(path: Path, side: int) -> Pixels:
    """Read a picture: the square in its middle, at `side` pixels, on white where it is transparent.

    Errors: TrainingError for one that is missing, does not decode, or is too large.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:  # of EXIF that is cut off
            if picture.width * picture.height > _MOST_PIXELS:
                raise TrainingError(f"{path} has {picture.width}x{picture.height} pixels; the most is {_MOST_PIXELS}")
            whole = _upright(picture).convert("RGBA")
    except FileNotFoundError:
        raise TrainingError(f"{path} is missing, though {METADATA} names it") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise TrainingError(f"{path} cannot be decoded as a picture: {error}") from None
    ground = Image.new("RGBA", whole.size, "white")
    ground.alpha_composite(whole)
    short = min(whole.size)
    left, top = (whole.width - short) // 2, (whole.height - short) // 2
    square = ground.convert("RGB").crop((left, top, left + short, top + short))
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))


def _upright(picture: Image.Image) -> Image.Image:
    """Turn what a camera has written that was held upright, as its EXIF says, where that can be read."""
    try:
        return ImageOps.exif_transpose(picture)
    except (struct.error, SyntaxError, ValueError, TypeError, KeyError):
        return picture
