"""What whoever looks at the page does: words are typed, pictures drawn, and what axe-core finds is told."""

from __future__ import annotations

import sys
from pathlib import Path

from server.app import Server
from tests.support.browser import Browser
from tests.support.relay import Relay

TILES = "document.querySelectorAll('#grid li').length"
STAGE = "document.querySelector('.drawing.stage')"
# A folder of Python's packages has it (Makefile); the page has nothing of it.
AXE = Path(sys.prefix) / "axe/axe_playwright_python/axe.min.js"


def draw(browser: Browser, prompt: str) -> None:
    """Type a prompt and press Ctrl+Enter."""
    browser.fill("#prompt", prompt)
    browser.press("Enter", modifiers=2)


def drawn(browser: Browser, *prompts: str) -> None:
    """Draw, one after the other, until all are in the gallery."""
    for prompt in prompts:
        before = browser.run(TILES)
        draw(browser, prompt)
        browser.wait(f"{TILES} === {before + 1}")
    browser.wait(f"{STAGE}.dataset.state === 'finished'")


def at_ease(browser: Browser) -> None:
    """Wait until nothing moves any more: a colour on its way is neither the one nor the other."""
    moves = "one.playState === 'running' && one.effect.getTiming().iterations === 1"  # what breathes is left to
    browser.wait(f"!document.getAnimations().some((one) => {moves})")


def ready(browser: Browser, where: Server | Relay) -> None:
    """Open the page and wait until it knows the model."""
    browser.goto(f"http://127.0.0.1:{where.port if isinstance(where, Relay) else where.http_port}/")
    browser.wait("document.querySelector('#served').dataset.state === 'ready'")


def faults(browser: Browser) -> list[str]:
    assert AXE.is_file(), "make setup brings axe-core"
    if not browser.run("Boolean(globalThis.axe)"):
        browser.run(AXE.read_text() + "; null")
    at_ease(browser)
    found = browser.run("axe.run(document, { resultTypes: ['violations'] }).then((all) => all.violations)")
    serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    return [f"{fault['id']}: {fault['nodes'][0]['html']} {fault['nodes'][0]['failureSummary']}" for fault in serious]
