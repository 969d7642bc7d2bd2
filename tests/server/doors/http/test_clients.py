"""Other people's clients, unmodified: the openai SDK, and webuiapi for AUTOMATIC1111's API."""

from __future__ import annotations

import base64
import io

import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image as PILImage

from engines.model import Model
from server.app import Server
from tests.support.held import Held
from tests.support.jobs import alone, decoded
from tests.support.openai_sdk import openai_client
from tests.support.serving import serving


def test_openai_lists_the_model(client: openai.OpenAI, model: Model) -> None:
    (listed,) = client.models.list()
    assert listed.id == model.id == client.models.retrieve(model.id).id
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-image-2")
    assert missing.value.param == "model" and missing.value.code == "model_not_found"


def test_openai_generates(client: openai.OpenAI, model: Model) -> None:
    answer = client.images.generate(
        prompt="a red apple",
        model=model.id,
        n=2,
        size="auto",
        response_format="b64_json",
        quality="high",
        user="somebody",
        extra_body={"seed": 5, "steps": 3, "sampler": "euler", "guidance": 2.0, "negative_prompt": "blue"},
    )
    assert answer.data and answer.size == "24x24" and answer.output_format == "png"
    for index, picture in enumerate(answer.data):
        fields = {"seed": 5 + index, "steps": 3, "sampler": "euler", "guidance": 2.0, "negative_prompt": "blue"}
        expected = alone(model, prompt="a red apple", **fields)
        assert picture.b64_json
        np.testing.assert_array_equal(decoded(base64.b64decode(picture.b64_json)), expected)
    assert answer.usage and answer.usage.input_tokens > 0 and answer.usage.output_tokens == 0


def test_openai_sizes_and_compression(client: openai.OpenAI) -> None:
    def bytes_at(quality: int) -> int:
        answer = client.images.generate(
            prompt="a", size="24x24", output_format="jpeg", output_compression=quality, extra_body={"seed": 1}
        )
        assert answer.data and answer.data[0].b64_json and answer.output_format == "jpeg"
        data = base64.b64decode(answer.data[0].b64_json)
        assert PILImage.open(io.BytesIO(data)).format == "JPEG"
        return len(data)

    assert bytes_at(10) < bytes_at(95)


@pytest.mark.parametrize("partial", [0, 1, 2, 3])
def test_openai_streams_with_partial_images(partial: int, client: openai.OpenAI, model: Model) -> None:
    extra = {"seed": 9, "steps": 8}
    events = list(client.images.generate(prompt="the cat", stream=True, partial_images=partial, extra_body=extra))
    *partials, last = events
    assert last.type == "image_generation.completed" and last.size == "24x24" and last.usage.total_tokens > 0
    np.testing.assert_array_equal(
        decoded(base64.b64decode(last.b64_json)), alone(model, prompt="the cat", seed=9, steps=8)
    )
    assert len(partials) <= partial, "a preview that nobody has read is replaced by the next"
    numbers = []
    for event in partials:
        assert event.type == "image_generation.partial_image" and event.output_format == "jpeg"
        assert PILImage.open(io.BytesIO(base64.b64decode(event.b64_json))).size == (24, 24)
        numbers.append(event.partial_image_index)
    assert numbers == sorted(set(numbers)) and set(numbers) <= set(range(partial))


def test_openai_has_each_partial_image_while_the_picture_forms(wired: Model, held: Held) -> None:
    with (
        serving(wired, http_port=0) as server,
        openai_client(server) as client,
    ):
        list(client.images.generate(prompt="a", stream=True, partial_images=1))  # fits the map
        held.hold()
        stream = client.images.generate(prompt="a", stream=True, partial_images=3, extra_body={"steps": 8})
        numbers = []
        for steps in (2, 2, 2):  # after two, four and six
            for _ in range(steps):
                held.begun()
                held.let()
            event = next(stream)
            assert event.type == "image_generation.partial_image"
            numbers.append(event.partial_image_index)
        held.release()
        assert numbers == [0, 1, 2]
        assert [event.type for event in stream] == ["image_generation.completed"]


def test_openai_errors(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a", n=9)
    assert (refused.value.param, refused.value.code) == ("n", "invalid_value")
    assert "n is 9; it must be 1 to 8" in refused.value.message
    for fields, param in (
        ({"response_format": "url"}, "response_format"),
        ({"background": "transparent"}, "background"),
        ({"size": "17x17"}, "size"),
        ({"size": "large"}, "size"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 50}, "output_compression"),
        ({"partial_images": 2}, "partial_images"),
        ({"stream": True, "partial_images": 4}, "partial_images"),
        ({"stream": True, "n": 2}, "n"),
        ({"extra_body": {"image": "http://example.org/a.png"}}, "image"),
        ({"extra_body": {"steps": "7"}}, "steps"),
        ({"extra_body": {"seed": -1}}, "seed"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(prompt="a", **fields)  # type: ignore[call-overload]
        assert refused.value.param == param, fields
    server.service.draining = True
    try:
        with pytest.raises(openai.InternalServerError) as away:
            client.images.generate(prompt="a")
    finally:
        server.service.draining = False
    assert away.value.status_code == 503 and away.value.request_id


def test_openai_hears_of_a_failure_in_the_middle(wired: Model, held: Held) -> None:
    def spoil(denoiser, rows) -> None:
        denoiser.outputs[0] = float("nan")

    with (
        serving(wired, http_port=0) as server,
        openai_client(server) as client,
    ):
        held.after_run = spoil
        with pytest.raises(openai.APIError, match="image 0 came out as not a number"):
            list(client.images.generate(prompt="a", stream=True))


@pytest.fixture
def webui(server: Server) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(port=server.http_port)


def test_webuiapi_draws(webui: webuiapi.WebUIApi, model: Model) -> None:
    """With the dozens of fields that it sends each time."""
    result = webui.txt2img(
        prompt="a red apple", negative_prompt="blue", seed=7, steps=3, width=24, height=24, n_iter=2, cfg_scale=4
    )
    assert [image.size for image in result.images] == [(24, 24)] * 2
    for index, image in enumerate(result.images):
        fields = {"negative_prompt": "blue", "seed": 7 + index, "steps": 3, "guidance": 4.0, "sampler": "euler_a"}
        np.testing.assert_array_equal(np.asarray(image), alone(model, prompt="a red apple", **fields))
    assert (result.info["seed"], result.info["all_seeds"], result.info["sampler_name"]) == (7, [7, 8], "Euler a")
    assert result.info["infotexts"][1].startswith("a red apple\nNegative prompt: blue\nSteps: 3, Sampler: Euler a, ")
    assert result.parameters["prompt"] == "a red apple"


def test_webuiapi_names_samplers(webui: webuiapi.WebUIApi, model: Model) -> None:
    for name, scheduler, ours in (
        ("DPM++ 2M Karras", None, "dpmpp_2m_karras"),
        ("DPM++ 2M", "Karras", "dpmpp_2m_karras"),
        ("DPM++ 2M", "Uniform", "dpmpp_2m"),
        ("Euler", "automatic", "euler"),
    ):
        (image,) = webui.txt2img(
            prompt="a", seed=3, steps=4, width=24, height=24, cfg_scale=1, sampler_name=name, scheduler=scheduler
        ).images
        np.testing.assert_array_equal(
            np.asarray(image), alone(model, prompt="a", seed=3, steps=4, guidance=1.0, sampler=ours)
        )
    assert {"Euler a", "DPM++ 2M", "DDIM"} <= set(webui.util_get_sampler_names())


def test_webuiapi_is_told_what_there_is_not(webui: webuiapi.WebUIApi) -> None:
    size = {"width": 24, "height": 24}
    for fields, name in (
        ({"enable_hr": True}, "enable_hr"),
        ({"tiling": True}, "tiling"),
        ({"restore_faces": True}, "restore_faces"),
        ({"styles": ["a"]}, "styles"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"save_images": True}, "save_images"),
        ({"script_name": "x/y plot"}, "script_name"),
        ({"alwayson_scripts": {"ControlNet": {"args": [1]}}}, "alwayson_scripts"),
        ({"override_settings": {"eta_noise_seed_delta": 31337}}, "eta_noise_seed_delta"),
        ({"sampler_name": "LMS"}, "sampler_name"),
        ({"scheduler": "Exponential"}, "scheduler"),
        ({"sampler_name": "DDIM"}, "eta"),  # which webuiapi sends as 1
        ({"batch_size": 9}, "batch_size"),
    ):
        with pytest.raises(RuntimeError, match=rf"\b{name} is ") as refused:
            webui.txt2img(prompt="a", **{**size, **fields})
        assert refused.value.args[0] == 400
    assert webui.txt2img(prompt="a", steps=1, sampler_name="DDIM", eta=0, **size).image.size == (24, 24)


def test_webuiapi_asks_around(webui: webuiapi.WebUIApi, model: Model) -> None:
    (title,) = webui.util_get_model_names()
    assert title == f"{model.id} [{model.digest[:10]}]" == webui.util_get_current_model()
    webui.util_set_model(model.id)
    webui.util_wait_for_ready(check_interval=0.01)
    assert webui.get_progress()["state"]["job_count"] == 0
    assert webui.interrupt() == {}
    assert webui.get_scripts() == {"txt2img": ["latentd"], "img2img": ["latentd"]} and webui.get_upscalers() == []
    assert webui.get_cmd_flags() == {} and webui.get_options()["samples_format"] == "png"
    (image,) = webui.txt2img(
        prompt="a", steps=1, width=24, height=24, override_settings={"samples_format": "webp"}
    ).images
    assert image.format == "WEBP"
