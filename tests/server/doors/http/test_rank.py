"""POST /api/rank: the judge's scores as gRPC has them, and refusals by name."""

from __future__ import annotations

import base64
import json
import threading
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest

from engines.model import Model
from latentd import Client
from server.app import Server
from tests.support.patience import PATIENCE
from tests.support.serving import address, http, serving
from tests.support.uploads import colours, saved

PICTURES = [saved(colours()), saved(colours(20, 50), "webp")]
BASE64 = [base64.b64encode(picture).decode() for picture in PICTURES]


def ranked(server: Server, body: Any, **headers: str) -> Any:
    headers = {"content-type": "application/json", **headers}
    request = urllib.request.Request(f"{http(server)}/api/rank", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def refused(server: Server, body: Any, **headers: str) -> tuple[int, str, str]:
    with pytest.raises(urllib.error.HTTPError) as error:
        ranked(server, body, **headers)
    told = json.load(error.value)["error"]
    return error.value.code, told["field"], told["message"]


def test_scores_are_those_of_grpc(towers: Model) -> None:
    texts = ["the cat", "photo of the blue apple", "cat " * 30]
    with serving(towers, http_port=0) as server, Client(address(server)) as client:
        answer = ranked(server, {"pictures": [BASE64[0], f"data:image/webp;base64,{BASE64[1]}"], "texts": texts})
        np.testing.assert_allclose(answer["scores"], client.rank(PICTURES, texts), atol=1e-5)
        assert answer["texts_cut"] == [False, False, True]
        with urllib.request.urlopen(f"{http(server)}/api/model", timeout=PATIENCE) as told:
            features = json.load(told)["features"]
        assert features["style_image"] and features["keep"] and features["rank"]
        for body, field, words in (
            ({"pictures": BASE64, "texts": []}, "texts", "texts are 0; they must be 1 to 16"),
            ({"pictures": BASE64 * 5, "texts": ["a"]}, "pictures", "pictures are 10; they must be 1 to 8"),
            ({"pictures": ["YQ=="], "texts": ["a"]}, "pictures[0]", "pictures[0] is none of PNG, JPEG and WebP"),
            ({"pictures": ["#"], "texts": ["a"]}, "pictures[0]", "pictures[0] is not a picture in base64"),
            ({"texts": ["a"]}, "pictures", "pictures is missing"),
        ):
            code, named, told = refused(server, body)
            assert (code, named) == (400, field) and told.startswith(words)
        body = {"pictures": BASE64, "texts": texts}
        assert refused(server, body, **{"X-Deadline-Ms": "soon"})[1] == "x-deadline-ms"
        code, _, told = refused(server, {**body, "model": "sdxl"})
        assert code == 404 and "'sdxl'" in told


def test_a_deadline_that_passes_meanwhile(towers: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert towers.judge is not None
    theirs, go = towers.judge.picture, threading.Event()

    def picture(pixels: Any) -> Any:
        assert go.wait(PATIENCE)
        return theirs(pixels)

    monkeypatch.setattr(towers.judge, "picture", picture)
    with serving(towers, http_port=0) as server:
        code, _, told = refused(server, {"pictures": BASE64, "texts": ["a"]}, **{"X-Deadline-Ms": "50"})
        go.set()
    assert (code, told) == (504, "the deadline passed")


def test_without_a_judge_it_is_refused_by_name(model: Model) -> None:
    with serving(model, http_port=0) as server:
        code, field, told = refused(server, {"pictures": BASE64, "texts": ["a"]})
    assert (code, field) == (400, "pictures")
    assert told == f"{model.id} has no judge to rank by; the server's setting --judge names one"
