"""Uploaded pictures: files that anybody may have sent, to pixels of the size that is drawn.

PNG, JPEG and WebP, decided by their first bytes (container.py). Nothing here runs on the event loop.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from pipeline.conditions.original import Original
from pipeline.errors import InvalidRequest
from server.container import read_container

FITS = ("crop", "resize", "pad")  # the first is the default
_GREY, _WHITE = (128, 128, 128), 255
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def original_of(init_image: bytes, mask: bytes | None, size: tuple[int, int], fit: str) -> Original:
    """Decode and fit the picture that a request begins with, and its mask, to `size` (width and height in pixels).

    `fit`: "crop" scales until the size is covered and cuts what is over, the same on both sides; "resize" stretches;
    "pad" scales until all of it fits, on grey, which is redrawn where there is a mask.
    Errors: InvalidRequest naming the field.
    """
    picture = opaque(read_picture("init_image", init_image))
    pixels = np.asarray(_fitted(picture, size, fit, Image.Resampling.LANCZOS, _GREY))
    if mask is None:
        return Original(pixels)
    painted = read_picture("mask", mask)
    if painted.size != picture.size:
        raise InvalidRequest(
            f"mask has {painted.width}x{painted.height} pixels, init_image {picture.width}x{picture.height}; they must "
            "be the same",
            "mask",
        )
    grey = _fitted(_grey(painted), size, fit, Image.Resampling.BILINEAR, _WHITE)
    redrawn = np.asarray(grey) >= 128
    if not redrawn.any():
        raise InvalidRequest(
            "mask has nothing white, so nothing would be redrawn; white is redrawn, black stays", "mask"
        )
    return Original(pixels, redrawn)


def read_picture(field: str, data: bytes) -> Image.Image:
    """Decode a file upright: mode "L", "RGB", or "RGBA" where it has transparency. Of 16 bits the upper 8 count.

    Errors: InvalidRequest naming the field, for a file that is refused (read_container) or cannot be decoded.
    """
    container = read_container(field, data)
    try:
        with Image.open(io.BytesIO(container.data), formats=[container.kind]) as image:
            if image.size != (container.width, container.height):
                raise ValueError(image.size)
            image.load()
            picture = _plain(image)
    except Exception:  # of bytes that are hostile a decoder may make anything
        raise InvalidRequest(
            f"{field} cannot be decoded: the {container.kind} file is damaged or cut short", field
        ) from None
    turn = _TURNED.get(container.orientation)
    return picture if turn is None else picture.transpose(turn)


def from_transparency(mask: bytes) -> bytes:
    """Return the mask of one whose transparent pixels are to be redrawn, as OpenAI's are; an opaque one as it is.

    Errors: InvalidRequest naming the field.
    """
    painted = read_picture("mask", mask)
    if painted.mode != "RGBA":
        return mask
    redrawn = np.asarray(painted.getchannel("A")) < 128
    file = io.BytesIO()
    Image.fromarray(redrawn).save(file, "png")
    return file.getvalue()


def inverted(mask: bytes) -> bytes:
    """Return the mask of one whose black is to be redrawn. Errors: InvalidRequest naming the field."""
    file = io.BytesIO()
    ImageOps.invert(_grey(read_picture("mask", mask))).save(file, "png")
    return file.getvalue()


def opaque(picture: Image.Image) -> Image.Image:
    """Return a picture in RGB, laid on white where it is transparent."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    ground = Image.new("RGB", picture.size, (_WHITE,) * 3)
    ground.paste(picture, mask=picture.getchannel("A"))
    return ground


def _grey(mask: Image.Image) -> Image.Image:
    """Return a mask in grey. Errors: InvalidRequest for one that is transparent."""
    if mask.mode == "RGBA":
        if mask.getextrema()[3][0] < 255:  # type: ignore[index] (of a band there is a pair)
            raise InvalidRequest("mask is transparent; it must be opaque: white is redrawn, black stays", "mask")
        mask = mask.convert("RGB")
    return mask.convert("L")


def _plain(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _fitted(
    picture: Image.Image,
    size: tuple[int, int],
    fit: str,
    resampling: Image.Resampling,
    ground: tuple[int, int, int] | int,
) -> Image.Image:
    """Fit a picture to `size`; one that has it already keeps every pixel."""
    (width, height), (w, h) = picture.size, size
    if fit == "resize" or picture.size == size:
        return picture.resize(size, resampling)
    if fit == "crop":
        scale = max(w / width, h / height)
        across, down = min(width, w / scale), min(height, h / scale)
        left, top = (width - across) / 2, (height - down) / 2
        return picture.resize(size, resampling, (left, top, left + across, top + down))
    scale = min(w / width, h / height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    fitted = Image.new(picture.mode, size, ground)
    fitted.paste(picture.resize(inner, resampling), ((w - inner[0]) // 2, (h - inner[1]) // 2))
    return fitted
