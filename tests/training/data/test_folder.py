"""Pictures with captions from a folder, and what is said of those that cannot be learnt from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.data.folder import FolderPictures, read_picture
from training.errors import TrainingError


def filled(folder: Path, count: int = 6, listed: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (30 + i, 40), (40 * i, 0, 0)).save(folder / f"{i}.png")
        if not listed:
            (folder / f"{i}.txt").write_text(f"red {i}\n")
    if listed:
        rows = [json.dumps({"file_name": f"{i}.png", "text": f"red {i}"}) for i in range(count)]
        (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.mark.parametrize("listed", [False, True])
def test_each_pass_reads_every_picture_but_those_held_out(tmp_path: Path, listed: bool) -> None:
    pictures = FolderPictures(filled(tmp_path, listed=listed), 16, seed=1)
    held = {pictures.held("a", i).caption for i in range(6)}
    passes = [[pictures.sample("denoiser", i).caption for i in range(5 * n, 5 * n + 5)] for n in range(3)]
    assert len(held) == 1 and all(set(one) | held == {f"red {i}" for i in range(6)} for one in passes)
    assert passes[0] != passes[1] or passes[1] != passes[2]
    sample = pictures.sample("denoiser", 0)
    assert sample.pixels.shape == (16, 16, 3)
    assert sample.pixels[8, 8].tolist() == [40 * int(sample.caption[-1]), 0, 0]


def test_a_transparent_picture_stands_on_white(tmp_path: Path) -> None:
    filled(tmp_path, 4)
    for i in range(4):
        Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / f"{i}.png")
    assert (FolderPictures(tmp_path, 8, 0).sample("a", 0).pixels == 255).all()


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    def refusal(folder: Path) -> str:
        with pytest.raises(TrainingError) as error:
            FolderPictures(folder, 16, 0)
        return str(error.value)

    assert "none is no folder" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "has no pictures (.png, .jpg" in refusal(tmp_path / "empty")
    assert "has 2 pictures (.png, .jpg, .jpeg, .webp, .bmp); training needs at least 4" in refusal(
        filled(tmp_path / "two", 2)
    )
    bad = filled(tmp_path / "bad")
    (bad / "3.png").write_bytes((bad / "3.png").read_bytes()[:50])
    assert "3.png cannot be decoded as a picture" in refusal(bad)
    uncaptioned = filled(tmp_path / "uncaptioned")
    (uncaptioned / "2.txt").unlink()
    assert "2.png has no caption: neither 2.txt nor metadata.jsonl is there" in refusal(uncaptioned)
    (uncaptioned / "2.txt").write_text(" \n")
    assert "2.png has an empty caption" in refusal(uncaptioned)
    listed = filled(tmp_path / "listed", listed=True)
    place = listed / "metadata.jsonl"
    place.write_text(place.read_text() + '\n{"file_name": "9.png", "text": "gone"}')
    assert "9.png is missing, though metadata.jsonl names it" in refusal(listed)
    whole = place.read_text().splitlines()[:6]
    place.write_text("\n".join([*whole, whole[2]]))
    assert "metadata.jsonl, line 7: '2.png' is named by a line before" in refusal(listed)
    place.write_text("\n".join(whole[1:]))
    assert "0.png has no caption: metadata.jsonl is there and does not name it" in refusal(listed)
    place.write_text('{"file_name": "../9.png", "text": "up"}')
    assert "line 1: '../9.png' lies outside the folder" in refusal(listed)
    place.write_text('{"file": "0.png"}')
    assert 'line 1: it must be {"file_name": "..", "text": ".."}' in refusal(listed)


def test_it_is_said_how_many_there_are(tmp_path: Path) -> None:
    assert FolderPictures(filled(tmp_path, 40), 16, 0).summary == "40 pictures, 2 of them held out"


@pytest.mark.parametrize(
    ("orientation", "stands"),
    [
        (0, lambda p: p),  # none is said
        (1, lambda p: p),
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (4, lambda p: p[::-1]),
        (5, lambda p: p.transpose(1, 0, 2)),
        (6, lambda p: np.rot90(p, -1)),
        (7, lambda p: np.rot90(p.transpose(1, 0, 2), 2)),
        (8, lambda p: np.rot90(p)),
    ],
)
def test_a_picture_stands_as_its_camera_was_held(
    tmp_path: Path, orientation: int, stands: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> None:
    """As EXIF 2.32 numbers them, table 4.6.4, tag 0x0112."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "a.png", 16), stands(pixels))


def test_exif_that_cannot_be_read_turns_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xf0\0")
    assert read_picture(tmp_path / "a.jpg", 16)[8, 8, 0] > 250


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    filled(tmp_path, 4)
    Image.new("1", (9000, 9000)).save(tmp_path / "0.png")
    with pytest.raises(TrainingError, match="9000x9000 pixels; the most is 64000000"):
        FolderPictures(tmp_path, 16, 0)


def test_pixels_are_the_middle_square(tmp_path: Path) -> None:
    filled(tmp_path, 4)
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    for i in range(4):
        Image.fromarray(wide).save(tmp_path / f"{i}.png")
    assert (FolderPictures(tmp_path, 10, 0).sample("a", 0).pixels == 200).all()
