"""What the page is told of the model, and where its files are."""

from __future__ import annotations

import dataclasses
import json
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from engines.model import Model
from pipeline.samplers import SAMPLERS
from server.doors.http import page
from server.request import ImageRequest
from tests.support.held import Held
from tests.support.patience import PATIENCE
from tests.support.serving import http, serving


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return answer.read()


def test_the_model_as_the_page_knows_it(model: Model) -> None:
    default = model.spec.defaults
    with serving(model, http_port=0, seats=3) as server:
        told = json.loads(fetch(f"{http(server)}/api/model"))
    assert told["id"] == model.id and told["weights_digest"] == model.digest and told["seats"] == 3
    assert told["sizes"] == [[default.width, default.height]] and told["samplers"] == list(SAMPLERS)
    assert told["defaults"]["steps"] == default.steps and told["limits"]["images"] == 8
    has = {"init_image": True, "mask": True, "interval": True}
    assert told["features"] == {
        **has,
        "inpaints": False,
        "style_image": False,
        "sizes": False,
        "keep": False,
        "loras": False,
        "rank": False,
    }
    assert told["examples"] == told["things"] == [] and told["about"] == "", "it has no card"


def test_all_that_can_be_asked_for_can_be_asked_for_here() -> None:
    known = {field.name for field in dataclasses.fields(ImageRequest)}
    assert set(page.Drawing.model_fields) == known - {"progress"}, "which the page always shows"


def test_what_is_no_picture_is_named(model: Model) -> None:
    with serving(model, http_port=0) as server:
        for body, words in (
            ({"init_image": "#"}, "init_image is not a picture in base64"),
            (
                {"mask": "HTTP://example.com/a.png"},
                "mask is a URL, and none is fetched: it takes a picture in base64",
            ),
            ({"init_image": "data:image/png;base64,YQ==", "style_image": 3}, "style_image is not a picture in base64"),
            ({"init_image": "data:image/png;base64,YQ=="}, "init_image is none of PNG, JPEG and WebP"),
            ({"init_image": "A" * (1 << 20)}, "init_image is none of PNG, JPEG and WebP"),
            ({"mask": "YQ=="}, "mask needs a picture to begin with; init_image is missing"),
        ):
            request = urllib.request.Request(
                f"{http(server)}/api/generate", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=PATIENCE)
            error = json.load(refused.value)["error"]
            assert (refused.value.code, error["field"]) == (400, words.split()[0]) and words in error["message"]


def test_files(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web/index.html").write_text("<!doctype html>the page")
    (tmp_path / "web/main.js").write_text("export {}")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "web/link").symlink_to(tmp_path / "secret")
    monkeypatch.setattr(page, "FILES", tmp_path / "web")
    with serving(model, http_port=0) as server:
        assert fetch(f"{http(server)}/") == b"<!doctype html>the page"
        with urllib.request.urlopen(f"{http(server)}/static/main.js", timeout=PATIENCE) as answer:
            assert answer.headers["content-type"].startswith("text/javascript")
            assert answer.headers["cache-control"] == "no-cache" and answer.headers["etag"]
        for path in ("../secret", "%2e%2e/secret", "..%2fsecret", "link", "nothing.js", ""):
            with pytest.raises(urllib.error.HTTPError) as missing:
                fetch(f"{http(server)}/static/{path}")
            assert missing.value.code == 404


def test_a_deadline_that_passes_while_the_first_previews_are_prepared(wired: Model, held: Held) -> None:
    """Its client hears of it then, and not when all is prepared."""
    go = threading.Event()
    held.before_moments = lambda: (go.wait(PATIENCE), None)[1]
    with serving(wired, http_port=0) as server:
        headers = {"content-type": "application/json", "x-deadline-ms": "50"}
        body = json.dumps({"prompt": "a", "preview_every": 1}).encode()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(
                urllib.request.Request(f"{http(server)}/api/generate", body, headers), timeout=PATIENCE
            )
        go.set()
        assert (refused.value.code, json.load(refused.value)["error"]["message"]) == (504, "the deadline passed")
