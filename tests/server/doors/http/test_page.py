"""What the page is told of the model, and where its files are."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from engines.model import Model
from pipeline.samplers import SAMPLERS
from server.doors.http import page
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
    assert told["features"] == {"init_image": False, "mask": False, "style_image": False, "keep": False}
    assert told["examples"] == [] and told["about"] == "", "it has no card"


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
