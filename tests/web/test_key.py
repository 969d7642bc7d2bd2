"""The page of a server that asks for a key: it keeps it for its tab, and asks again when it counts no more."""

from __future__ import annotations

from pathlib import Path

from engines.model import Model
from tests.support.browser import Browser
from tests.support.keys import entry, token, write_keys
from tests.support.serving import serving
from tests.web.acts import TILES, draw, faults


def test_it_asks_for_a_key_and_sends_it(browser: Browser, wired: Model, tmp_path: Path) -> None:
    file = write_keys(tmp_path / "keys.yaml", entry("a"), entry("b"))
    asked = "document.querySelector('#key').open"
    with serving(wired, http_port=0, keys=file) as server:
        browser.goto(f"http://127.0.0.1:{server.http_port}/")
        browser.wait(asked)
        assert browser.run("document.activeElement.id") == "key-field" and faults(browser) == []
        give(browser, "latentd_wrong")
        browser.wait("document.querySelector('#key-complaint').textContent.startsWith('The server does not take')")
        give(browser, "two words")
        browser.wait("document.querySelector('#key-complaint').textContent.startsWith('A key has no spaces')")
        give(browser, token("a"))
        browser.wait("document.querySelector('#served').dataset.state === 'ready'")
        assert not browser.run(asked) and browser.run("document.querySelector('#key-field').value") == ""
        draw(browser, "a red apple")
        browser.wait(f"{TILES} === 1")
        browser.goto(f"http://127.0.0.1:{server.http_port}/")
        browser.wait("document.querySelector('#served').dataset.state === 'ready'")
        assert not browser.run(asked), "the tab has it still"
        assert token("a") not in browser.run("JSON.stringify(localStorage)")
        write_keys(file, entry("a", revoked=True), entry("b"))
        draw(browser, "a red apple")
        browser.wait(asked)
        give(browser, token("b"))
        browser.wait(f"!{asked}")
        draw(browser, "a red apple")
        browser.wait(f"{TILES} === 2")


def give(browser: Browser, key: str) -> None:
    browser.run(f"document.querySelector('#key-field').value = {key!r}")
    browser.click("#key button")
