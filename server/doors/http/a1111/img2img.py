"""img2img's request: a picture to begin with, and perhaps a mask, beside what txt2img has.

Names, and what they are when nobody sets them, are StableDiffusionImg2ImgProcessingAPI's (modules/api/models.py, 1.10).
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from engines.model import Model
from pipeline.errors import InvalidRequest
from server.doors.http.a1111 import txt2img
from server.doors.http.a1111.txt2img import Txt2Img
from server.doors.http.errors import MissingField
from server.doors.http.pictures import decoded
from server.request import ImageRequest

NAMES = txt2img.NAMES | {"init_image": "init_images", "strength": "denoising_strength", "fit": "resize_mode"}
_STRENGTH = 0.75  # A1111's default
_FITS = {0: "resize", 1: "crop", 2: "pad"}  # what resize_mode's numbers are here; 3 resizes latents


class Img2Img(Txt2Img):
    """A request for pictures that begin with one, as AUTOMATIC1111's clients send it."""

    init_images: list[str] | None = Field(None, description="One picture in base64; a data: URL is taken too.")
    mask: str | None = Field(None, description="A picture in base64: white is redrawn.")
    denoising_strength: float | None = Field(None, description="0 to 1; 0.75 where nothing is said.")
    inpainting_mask_invert: bool | int | None = Field(None, description="What is black is redrawn instead.")
    resize_mode: int | None = Field(None, description="0: stretched, 1: cut, 2: on grey, which a mask redraws.")
    # A1111 blurs a mask, fills what is under it and may enlarge it; here it is taken as it is.
    inpainting_fill: int | None = Field(None, description="Without meaning here, as all that follow.")
    inpaint_full_res: bool | int | None = None
    inpaint_full_res_padding: int | None = None
    mask_blur: int | None = None
    mask_blur_x: int | None = None
    mask_blur_y: int | None = None
    mask_round: bool | None = None
    image_cfg_scale: float | None = None
    include_init_images: bool | None = None


def image_request(body: Img2Img, model: Model, most_images: int) -> ImageRequest:
    """Read a body; of a large one off the event loop. Errors: InvalidRequest."""
    if not body.init_images:
        raise MissingField("init_images is missing", "init_images")
    if len(body.init_images) > 1:
        raise InvalidRequest(f"init_images has {len(body.init_images)} pictures; one is taken", "init_images")
    mode = body.resize_mode or 0
    if mode not in _FITS:
        raise InvalidRequest(f"resize_mode is {mode}; it must be one of 0, 1, 2", "resize_mode")
    strength = body.denoising_strength
    mask = _bytes("mask", body.mask) if body.mask else None
    return replace(
        txt2img.image_request(body, model, most_images),
        init_image=_bytes("init_images", body.init_images[0]),
        mask=mask,
        strength=_STRENGTH if strength is None else strength,
        fit=_FITS[mode],
    )


def _bytes(field: str, text: str) -> bytes:
    """Errors: InvalidRequest for what is no base64."""
    try:
        return decoded(text)
    except ValueError as error:
        raise InvalidRequest(f"{field} {error}", field) from None


__all__ = ["NAMES", "Img2Img", "image_request"]
