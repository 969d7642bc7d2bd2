"""A server of a small checkpoint with a card, whose steps a test can hold, and a Chromium that looks at its page."""

from __future__ import annotations

import shutil
import socketserver
from collections.abc import Iterator
from unittest import mock

import pytest

from engines.choice import Choice
from engines.model import Model, load
from pipeline.checkpoint.opened import Checkpoint, open_checkpoint
from server.app import Server
from tests.support.browser import Browser, browsing, chromium
from tests.support.held import Held, wrapped
from tests.support.serving import serving

CARD = """---
widget:
  - text: a red apple
  - text: the blue cat
---
# A model for tests

Draws what nobody would recognise, in 24 x 24 pixels.
"""


@pytest.fixture(scope="session", autouse=True)
def prompt_end() -> Iterator[None]:
    """The metrics' server looks every half second whether it should end."""
    with mock.patch.object(socketserver.BaseServer.serve_forever, "__defaults__", (0.01,)):
        yield


@pytest.fixture(scope="session")
def carded(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("carded") / "tiny"
    shutil.copytree(checkpoint.path, folder)
    (folder / "README.md").write_text(CARD)
    return load(open_checkpoint(folder), Choice("openvino", "f32"))


@pytest.fixture(scope="session")
def backend(carded: Model) -> Held:
    return Held(carded.backend)


@pytest.fixture
def held(backend: Held) -> Iterator[Held]:
    """The backend of the servers here, which a test can hold and count; none is held when it ends."""
    backend.runs.clear()
    yield backend
    backend.release()


@pytest.fixture(scope="session")
def wired(carded: Model, backend: Held) -> Model:
    return wrapped(carded, backend)


@pytest.fixture(scope="session")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(chromium(), tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chrome: Browser) -> Browser:
    """A page without a past, 1,440 pixels wide, in light colours."""
    chrome.fresh()
    return chrome


def page(server: Server) -> str:
    return f"http://127.0.0.1:{server.http_port}/"


@pytest.fixture(scope="session")
def server(wired: Model) -> Iterator[Server]:
    """One for all tests but those that bring their own: each fits its previews' colours anew."""
    with serving(wired, seats=4, http_port=0) as server:
        yield server


@pytest.fixture(scope="session")
def narrow(wired: Model) -> Iterator[Server]:
    """One with a single seat, and room for two who wait."""
    with serving(wired, seats=1, queue_jobs=2, http_port=0) as server:
        yield server


@pytest.fixture
def opened(browser: Browser, server: Server) -> Browser:
    """The page, ready to draw."""
    browser.goto(page(server))
    browser.wait("document.querySelector('#served').dataset.state === 'ready'")
    return browser
