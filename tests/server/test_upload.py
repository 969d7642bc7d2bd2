"""Uploaded pictures: what is taken, how it is fitted, and that nothing in a file does harm.

UPLOADS=10000 in the environment tries more mutated files than the three hundred of `make test`.
"""

from __future__ import annotations

import os
import random
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import InvalidRequest
from server.container import read_container
from server.upload import opaque, original_of, read_picture
from tests.support.uploads import SIDES, bombs, chunk, colours, exif, files, mutated, saved

UPLOADS = int(os.environ.get("UPLOADS", "300"))
FILES, BOMBS = files(), bombs()
SQUARE = (24, 24)


@pytest.mark.parametrize("name", FILES)
def test_what_programs_write_is_taken(name: str) -> None:
    container, picture = read_container("init_image", FILES[name]), read_picture("init_image", FILES[name])
    assert container.kind == name.split()[0].upper() and (container.width, container.height) == SIDES
    turned = "exif" in name
    assert picture.size == (SIDES[::-1] if turned else SIDES)
    assert picture.mode == ("RGBA" if "transparent" in name else "L" if "grey" in name or "bit" in name else "RGB")
    if "16" in name or "1 bit" in name:
        return
    wanted = colours().transpose(Image.Transpose.ROTATE_270) if turned else colours()
    if "grey" in name:
        wanted = wanted.convert("L").convert("RGB")
    difference = np.abs(np.asarray(picture.convert("RGB"), int) - np.asarray(wanted, int))
    assert np.median(difference) < (20 if "palette" in name else 6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright(orientation: int) -> None:
    """Red grows to the right and green downwards in what is stored; the tag may stand behind others that claim more."""
    tagged = Image.Exif()
    tagged[0x0112] = orientation
    for kind, options in (("png", {}), ("webp", {"lossless": True})):
        picture = read_picture("init_image", saved(colours(), kind, exif=tagged, **options))
        assert picture.size == (SIDES[::-1] if orientation > 4 else SIDES)
        top, left = np.asarray(picture)[0, :, :2].astype(int), np.asarray(picture)[:, 0, :2].astype(int)
        # Red grew to the right and green downwards, before.
        along, down = (0, 1) if orientation <= 4 else (1, 0)
        assert bool(top[-1, along] > top[0, along]) == (orientation in (1, 4, 5, 8))
        assert bool(left[-1, down] > left[0, down]) == (orientation in (1, 2, 5, 6))
    plain = saved(colours(), "jpeg")
    tag = exif(orientation, entries=3)
    data = plain[:2] + b"\xff\xe1" + (2 + len(tag)).to_bytes(2, "big") + tag + plain[2:]
    assert read_container("init_image", data).orientation == orientation


def test_metadata_reaches_no_decoder() -> None:
    plain = saved(colours())
    more = chunk(b"tEXt", b"secret\0words") + chunk(b"eXIf", exif(3)[6:])
    container = read_container("init_image", plain[:33] + more + plain[33:])
    assert container.orientation == 3 and b"secret" not in container.data and b"eXIf" not in container.data
    jpeg = read_container("init_image", saved(colours(), "jpeg", comment=b"secret", exif=exif(3)))
    assert b"secret" not in jpeg.data and b"Exif" not in jpeg.data and jpeg.orientation == 3


def test_transparency_is_laid_on_white() -> None:
    clear = colours()
    clear.putalpha(0)
    assert (np.asarray(opaque(read_picture("init_image", saved(clear)))) == 255).all()
    clear.putalpha(255)
    assert np.array_equal(original_of(saved(clear), None, SIDES, "crop").pixels, np.asarray(colours()))


def test_a_picture_of_the_size_keeps_every_pixel() -> None:
    mask = Image.new("L", SIDES, 0)
    mask.paste(255, (3, 5, 9, 8))
    for fit in ("crop", "resize", "pad"):
        original = original_of(saved(colours()), saved(mask), SIDES, fit)
        assert np.array_equal(original.pixels, np.asarray(colours()))
        assert original.mask is not None and np.array_equal(original.mask, np.asarray(mask) > 0)


def test_the_three_fits() -> None:
    """40 x 30 to 24 x 24: 5 columns are cut on each side; all is squeezed; or 18 rows, of 24, are the picture's."""
    grown = Image.new("L", SIDES, 0)
    grown.paste(255, (20, 0, 40, 30))
    crop, resized, padded = (original_of(saved(colours()), saved(grown), SQUARE, f) for f in ("crop", "resize", "pad"))
    assert all(each.pixels.shape == (24, 24, 3) for each in (crop, resized, padded))
    red = [each.pixels[12, [0, -1], 0].astype(int) for each in (crop, resized, padded)]
    assert abs(red[0] - [5 * 255 // 40, 34 * 255 // 40]).max() < 8
    assert abs(red[1] - [0, 39 * 255 // 40]).max() < 8 and abs(red[2] - red[1]).max() < 8
    assert (padded.pixels[[0, 2, 21, 23]] == 128).all() and (padded.pixels[[3, 20]] != 128).any()
    assert padded.mask is not None and padded.mask[[0, 2, 21, 23]].all() and not padded.mask[12, :11].any()
    assert crop.mask is not None and crop.mask[:, 12:].all() and not crop.mask[:, :11].any()


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
@pytest.mark.parametrize("fit", ["crop", "resize", "pad"])
def test_a_sliver(size: tuple[int, int], fit: str) -> None:
    assert original_of(saved(colours(*size)), None, (16, 24), fit).pixels.shape == (24, 16, 3)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (Image.new("L", (39, 30), 255), "mask has 39x30 pixels, init_image 40x30; they must be the same"),
        (Image.new("L", SIDES, 127), "mask has nothing white, so nothing would be redrawn"),
        (Image.new("RGBA", SIDES, (255, 255, 255, 254)), "mask is transparent; it must be opaque"),
    ],
)
def test_masks_that_are_refused(mask: Image.Image, words: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{words}"):
        original_of(saved(colours()), saved(mask), SQUARE, "crop")


def test_masks_of_any_mode() -> None:
    grey = Image.new("L", SIDES, 0)
    grey.paste(255, (0, 0, 20, 30))
    for mode in ("1", "L", "RGB", "RGBA", "P"):
        original = original_of(saved(colours()), saved(grey.convert(mode)), SIDES, "crop")
        assert original.mask is not None and original.mask[:, :20].all() and not original.mask[:, 20:].any(), mode


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str) -> None:
    make, words = BOMBS[name]
    data = make()
    assert len(data) < 2 << 20
    tracemalloc.start()
    try:
        if words:
            with pytest.raises(InvalidRequest, match=f"^init_image .*{words}"):
                read_picture("init_image", data)
        else:
            read_picture("init_image", data)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_mutated_files_are_taken_or_refused() -> None:
    chance, refused = random.Random(7), 0
    for number in range(UPLOADS):
        name = chance.choice(list(FILES))
        data = mutated(FILES[name], chance)
        try:
            original = original_of(data, None, SQUARE, chance.choice(("crop", "resize", "pad")))
        except InvalidRequest as error:
            assert str(error).startswith("init_image "), (number, name)
            refused += 1
            continue
        assert original.pixels.shape == (24, 24, 3)
    assert UPLOADS // 4 < refused < UPLOADS
