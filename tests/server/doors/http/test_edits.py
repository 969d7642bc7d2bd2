"""Pictures to begin with at HTTP's doors: OpenAI's edits and AUTOMATIC1111's img2img, by their own clients."""

from __future__ import annotations

import base64
import io
import json
import math
import urllib.error
import urllib.request

import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image, ImageOps

from engines.generate import generate
from engines.model import Model
from server.app import Server
from server.doors.http import pictures
from server.upload import original_of
from tests.support.jobs import decoded
from tests.support.serving import http
from tests.support.uploads import colours, saved

ASKED = {"seed": 5, "steps": 5, "sampler": "euler", "guidance": 2.0}


def masks() -> tuple[bytes, bytes]:
    """The same place redrawn: transparent as OpenAI has it, and white."""
    clear, white = colours(), Image.new("L", (40, 30))
    alpha = Image.new("L", (40, 30), 255)
    alpha.paste(0, (10, 5, 30, 20))
    clear.putalpha(alpha)
    white.paste(255, (10, 5, 30, 20))
    return saved(clear), saved(white)


@pytest.mark.parametrize("masked", [None, "transparent", "white"])
def test_openai_edits(client: openai.OpenAI, model: Model, masked: str | None) -> None:
    transparent, white = masks()
    mask = {None: None, "transparent": transparent, "white": white}[masked]
    picture = saved(colours())
    answer = client.images.edit(
        image=("a.png", picture),
        prompt="a red apple",
        **({} if mask is None else {"mask": ("m.png", mask)}),
        extra_body={**ASKED, "strength": 0.7, "fit": "pad"},
    )
    original = original_of(picture, None if mask is None else white, (24, 24), "pad")
    expected = generate(model, "a red apple", **ASKED, original=original, strength=0.7)
    assert answer.data and answer.data[0].b64_json
    np.testing.assert_array_equal(decoded(base64.b64decode(answer.data[0].b64_json)), expected)


def test_an_edit_as_a_stream(client: openai.OpenAI) -> None:
    stream = client.images.edit(image=saved(colours()), prompt="a", stream=True, partial_images=2, extra_body=ASKED)
    names = [event.type for event in stream]
    assert names[-1] == "image_edit.completed" and set(names[:-1]) <= {"image_edit.partial_image"}


def test_what_openai_edits_refuses(client: openai.OpenAI) -> None:
    picture = saved(colours())
    for fields, param, words in (
        ({"image": [picture, picture]}, "image", "image is sent more than once; one picture is taken"),
        ({"image": b"GIF89a"}, "image", "image is none of PNG, JPEG and WebP, by its first bytes"),
        ({"image": picture, "mask": b"x"}, "mask", "mask is none of PNG, JPEG and WebP, by its first bytes"),
        ({"image": picture, "mask": saved(colours(8, 8))}, "mask", "mask has 8x8 pixels, image 40x30; they must be"),
        ({"image": picture, "extra_body": {"strength": 2}}, "strength", "strength is 2; it must be 0 to 1"),
        ({"image": picture, "extra_body": {"strenght": 1}}, "strenght", "there is no field 'strenght'"),
        ({"image": picture, "extra_body": {"steps": 10**400}}, "steps", f"steps is 1{'0' * 63}; it must be 1 to 150"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.edit(prompt="a", **fields)
        assert refused.value.param == param and words in refused.value.message


def test_a_url_for_a_file_of_a_form_is_refused(server: Server) -> None:
    for name in ("image", "image[]", "mask"):
        part = f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\nhttps://example.org/fox.png\r\n--x--\r\n'
        request = urllib.request.Request(f"{http(server)}/v1/images/edits", part.encode())
        request.add_header("Content-Type", "multipart/form-data; boundary=x")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        error, bare = json.load(refused.value)["error"], name.removesuffix("[]")
        assert (refused.value.code, error["param"]) == (400, bare)
        assert error["message"] == f"{bare} is text; it takes a file of the form, and no URL is fetched"


def test_webuiapi_img2img(server: Server, model: Model) -> None:
    api = webuiapi.WebUIApi(baseurl=f"{http(server)}/sdapi/v1")
    _, white = masks()
    for mask in (None, white):
        result = api.img2img(
            images=[colours()],
            mask_image=None if mask is None else Image.open(io.BytesIO(mask)),
            prompt="a red apple",
            seed=5,
            steps=5,
            cfg_scale=2.0,
            sampler_name="Euler",
            width=24,
            height=24,
            denoising_strength=0.7,
            resize_mode=1,
        )
        original = original_of(saved(colours()), mask, (24, 24), "crop")
        expected = generate(model, "a red apple", **ASKED, original=original, strength=0.7)
        np.testing.assert_array_equal(np.asarray(result.image.convert("RGB")), expected)


def test_a_mask_is_inverted_and_the_strength_is_told(server: Server) -> None:
    _, white = masks()
    black = saved(ImageOps.invert(Image.open(io.BytesIO(white))))
    base = {"prompt": "a", "seed": 5, "steps": 4, "denoising_strength": 0.5, "resize_mode": 1, "hr_scale": math.nan}
    pictures = [base64.b64encode(each).decode() for each in (saved(colours()), white, black)]
    answers = [
        json.loads(asked(server, {**base, "init_images": pictures[:1], "mask": mask, "inpainting_mask_invert": invert}))
        for mask, invert in ((pictures[1], 0), (pictures[2], 1))
    ]
    assert answers[0]["images"] == answers[1]["images"]
    told = json.loads(answers[0]["info"])
    assert told["denoising_strength"] == 0.5 and "Denoising strength: 0.5" in told["infotexts"][0]
    said = answers[1]["parameters"]
    assert said["hr_scale"] is None and said["inpainting_mask_invert"] and "mask" not in said


def asked(server: Server, fields: dict) -> bytes:
    """Post to img2img, and return its answer where every number is JSON's."""
    request = urllib.request.Request(
        f"{http(server)}/sdapi/v1/img2img", json.dumps(fields).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        data = answer.read()
    json.loads(data, parse_constant=pytest.fail)
    return data


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "init_images is missing"),
        ({"init_images": ["#"]}, "init_images is not a picture in base64"),
        (
            {"init_images": ["https://example.com/a.png"]},
            "init_images is a URL, and none is fetched: it takes a picture in base64",
        ),
        ({"init_images": ["YQ=="]}, "init_images is none of PNG, JPEG and WebP, by its first bytes"),
        ({"init_images": ["YQ==", "YQ=="]}, "init_images has 2 pictures; one is taken"),
        ({"init_images": ["YQ=="], "resize_mode": 3}, "resize_mode is 3; it must be one of 0, 1, 2"),
        ({"init_images": ["YQ=="], "denoising_strength": 1.5}, "denoising_strength is 1.5; it must be 0 to 1"),
        ({"init_images": ["YQ=="], "mask": "YQ==", "inpainting_mask_invert": 1}, "mask is none of PNG, JPEG and WebP"),
    ],
)
def test_what_img2img_refuses(server: Server, fields: dict, words: str) -> None:
    request = urllib.request.Request(
        f"{http(server)}/sdapi/v1/img2img", json.dumps(fields).encode(), {"content-type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert words in refused.value.read().decode()


def test_a_body_of_very_many_values_is_refused_before_it_is_read(server: Server) -> None:
    """Of each that is wrong pydantic makes an error, and nobody else is answered meanwhile."""
    for path, body in (
        ("/v1/images/generations", b"{%s}" % b",".join(b'"%d":0' % number for number in range(10_001))),
        ("/sdapi/v1/img2img", b'{"init_images":[%s]}' % b",".join([b"0"] * 20_001)),
    ):
        request = urllib.request.Request(http(server) + path, body, {"content-type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        told = refused.value.read().decode()
        assert refused.value.code == 400 and "the body has 20001 commas and colons; at most 20000 are read" in told


PADDED = base64.b64encode(b"a picture").decode()


@pytest.mark.parametrize("text", [PADDED, f"data:image/png;base64,{PADDED}", f" {PADDED[:5]}\r\n{PADDED[5:]}\n"])
def test_a_picture_in_base64_may_be_in_lines_or_a_url(text: str) -> None:
    assert pictures.decoded(text) == b"a picture"


@pytest.mark.parametrize(
    "text",
    ["YQ", PADDED.replace("w", "-"), "a\u00e4==", f"data:{PADDED}#", f"data:a,data:a,{PADDED}", None, 7],
)
def test_what_is_no_base64(text: object) -> None:
    with pytest.raises(ValueError):
        assert pictures.decoded(text) is None
