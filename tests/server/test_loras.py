"""LoRAs through every door of a real server: the same pixels everywhere, names that come and go, sentences."""

from __future__ import annotations

import base64
import io
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.choice import Choice
from engines.generate import generate
from engines.model import Beside, Model, load
from latentd import Client, ServerError
from pipeline.checkpoint.opened import open_checkpoint
from server.app import Server
from tests.support import oip
from tests.support.checkpoints import make_checkpoint
from tests.support.loras import tensors_of, write
from tests.support.serving import address, http, serving

PROMPT, SEED = "red apple", 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("models")
    checkpoint = open_checkpoint(make_checkpoint(folder / "tiny"))
    (folder / "loras").mkdir()
    for name, made in {"one": {"seed": 1}, "two": {"seed": 2, "rank": 40, "style": "peft"}}.items():
        write(folder / "loras" / f"{name}.safetensors", tensors_of(checkpoint.spec, **made))
    return load(checkpoint, Choice("onnxruntime"), Beside(loras=folder / "loras"))


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Server]:
    with serving(model, http_port=0, seats=3) as server:
        yield server


def wanted(model: Model, *loras: tuple[str, float]) -> Any:
    assert model.loras is not None
    lora = model.loras.lora(model.loras.chosen(loras)) if loras else None
    return generate(model, PROMPT, seed=SEED, lora=lora)


def drawn(server: Server, loras: Any, **options: Any) -> Any:
    with Client(address(server)) as client:
        (picture,) = client.generate(PROMPT, seed=SEED, loras=loras, **options)
    return np.asarray(picture.image)


def posted(server: Server, path: str, body: Any) -> bytes:
    message = urllib.request.Request(
        http(server) + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(message, timeout=60) as answer:
        return answer.read()


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_every_door_draws_the_same(server: Server, model: Model) -> None:
    both = wanted(model, ("one", 0.5), ("two", -0.75))
    plain, alone = wanted(model), wanted(model, ("one", 0.5))
    assert (both != alone).any() and (alone != plain).any()
    assert np.array_equal(drawn(server, {"one": 0.5, "two": -0.75}), both)
    assert np.array_equal(drawn(server, None), plain)
    words = {"prompt": PROMPT + "<lora:one:0.5><lora:two:-0.75>", "seed": SEED}
    a1111 = json.loads(posted(server, "/sdapi/v1/txt2img", words))
    assert np.array_equal(pixels(base64.b64decode(a1111["images"][0])), both)
    assert words["prompt"] in json.loads(a1111["info"])["infotexts"][0]
    openai = json.loads(
        posted(server, "/v1/images/generations", {"prompt": PROMPT, "seed": SEED, "loras": {"one": 0.5, "two": -0.75}})
    )
    assert np.array_equal(pixels(base64.b64decode(openai["data"][0]["b64_json"])), both)
    chosen = [{"name": "one", "weight": 0.5}, {"name": "two", "weight": -0.75}]
    page = posted(server, "/api/generate", {"prompt": PROMPT, "seed": SEED, "loras": chosen}).decode()
    (image,) = [part for part in page.split("\n\n") if part.startswith("event: image")]
    assert np.array_equal(pixels(base64.b64decode(json.loads(image.partition("data: ")[2])["data"])), both)
    message = oip.request(model.id, prompt=PROMPT, seed=SEED, loras="one:0.5,two:-0.75")
    (data,) = oip.outputs(oip.call(server, "ModelInfer", message))["image"]
    assert np.array_equal(pixels(data), both)


def test_names_are_listed_everywhere(server: Server, model: Model) -> None:
    assert model.loras is not None
    with Client(address(server)) as client:
        (told,) = client.models()
    assert [(lora.name, lora.refusal) for lora in told.loras] == [("one", ""), ("two", "")]
    assert told.loras[0].bytes > 1000 and "loras" in told.features
    for path in ("/api/model", "/sdapi/v1/loras"):
        with urllib.request.urlopen(http(server) + path, timeout=60) as answer:
            said = json.load(answer)
        assert [lora["name"] for lora in (said["loras"] if isinstance(said, dict) else said)] == ["one", "two"]
    file = write(model.loras.folder / "new.safetensors", tensors_of(model.spec, seed=9))
    try:
        assert (drawn(server, {"new": 1.0}) != drawn(server, None)).any()
        file.write_bytes(b"nothing")
        with Client(address(server)) as client:
            (told,) = client.models()
        assert [lora.name for lora in told.loras if lora.refusal] == ["new"]
    finally:
        file.unlink()
    with pytest.raises(ServerError, match="there is no LoRA 'new'; ListModels tells which there are"):
        drawn(server, {"new": 1.0})


@pytest.mark.parametrize(
    ("loras", "words"),
    [
        ({"../one": 1.0}, "there is no LoRA '../one'"),
        ({"one": 11.0}, "loras[0].weight is 11; it must be -10 to 10"),
        ({"one": float("nan")}, "loras[0].weight is nan"),
        ([("one", 0.1)] * 9, "loras are 9; at most 8"),
        ({"x" * 500: 1.0}, "loras[0].name has 500 characters"),
    ],
    ids=["path", "weight", "nan", "many", "name"],
)
def test_what_is_refused(server: Server, loras: Any, words: str) -> None:
    with pytest.raises(ServerError) as caught:
        drawn(server, loras)
    assert words in str(caught.value) and caught.value.code.name == "INVALID_ARGUMENT"


@pytest.mark.parametrize("prompt", ["a <lora:none:1> b", "a <lora:one:much> b", "a <lora:one:1:0.5> b"])
def test_a1111s_words_are_refused_in_a_sentence(server: Server, prompt: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        posted(server, "/sdapi/v1/txt2img", {"prompt": prompt})
    told = caught.value.read().lower()
    assert caught.value.code in (400, 422) and b"lora" in told and b"much" not in told, "no part of a prompt"


def test_a_model_without_a_folder_takes_none(model: Model) -> None:
    plain = load(open_checkpoint(model.checkpoint.path), Choice("onnxruntime"))
    with serving(plain) as server, pytest.raises(ServerError, match="takes none; the server's setting --loras"):
        drawn(server, {"one": 1.0})


def test_requests_side_by_side_have_the_pixels_that_they_have_alone(server: Server, model: Model) -> None:
    choices: list[tuple[tuple[str, float], ...]] = [(), (("one", 1.0),), (("two", 0.5),), (("one", -1.0), ("two", 1.0))]
    got: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda number=number: got.__setitem__(number, drawn(server, choices[number % 4])))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        assert np.array_equal(got[number], wanted(model, *choices[number % 4])), number
