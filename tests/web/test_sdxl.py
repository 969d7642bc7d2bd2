"""The form of a model of SDXL's kind with a folder of LoRAs: what is chosen is drawn with, remembered and let go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from engines.choice import Choice
from engines.model import Beside, load
from pipeline.checkpoint.opened import open_checkpoint
from server.app import Server
from tests.support.browser import Browser
from tests.support.loras import tensors_of, write
from tests.support.sdxl import make_sdxl
from tests.support.serving import serving
from tests.web.acts import TILES, draw, drawn, faults, ready

CHOSEN = "[...document.querySelectorAll('#loras-chosen input')].map((each) => [each.dataset.name, Number(each.value)])"
OFFERED = "[...document.querySelectorAll('#loras option')].filter((each) => !each.hidden && !each.disabled)"
OPEN = "for (const each of document.querySelectorAll('#settings, #told')) each.open = true"
SETTINGS = "[...document.querySelectorAll('#viewer-settings dt')].map((e) => [e.innerText, e.nextSibling.innerText])"


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    checkpoint = open_checkpoint(make_sdxl(folder / "sdxl"))
    (folder / "loras").mkdir()
    wide = replace(checkpoint.spec, unet=replace(checkpoint.spec.unet, context_width=768))
    for name, spec in {"glow": checkpoint.spec, "ink": checkpoint.spec, "old": wide}.items():
        write(folder / "loras" / f"{name}.safetensors", tensors_of(spec, text=False))
    model = load(checkpoint, Choice("openvino", "f32", threads=1), Beside(loras=folder / "loras"))
    with serving(model, http_port=0) as server:
        yield server


def choose(browser: Browser, name: str) -> None:
    browser.run(
        f"(() => {{ const e = document.querySelector('#loras'); e.value = {json.dumps(name)};"
        "e.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )


def test_loras_are_chosen_drawn_with_remembered_and_let_go(browser: Browser, xl: Server) -> None:
    ready(browser, xl)
    grey = "[...document.querySelectorAll('#loras option:disabled')].map((e) => e.innerText + '|' + e.title)"
    ((words, why),) = [each.split("|") for each in browser.run(grey)]
    assert words == "old (not for this model)" and "looks like one for SD 1.x" in why
    choose(browser, "ink")
    choose(browser, "glow")
    browser.fill("[data-name='glow']", "-0.5")
    assert browser.run(CHOSEN) == [["ink", 1], ["glow", -0.5]] and browser.run(f"{OFFERED}.length") == 1
    browser.run(OPEN)
    browser.fill("#crop", "0x8")
    browser.fill("#steps", "2")
    drawn(browser, "a red apple")
    ready(browser, xl)
    assert browser.run(CHOSEN) == [["ink", 1], ["glow", -0.5]], "as every other setting"
    browser.click("#grid li button")
    told = dict(browser.wait(f"document.querySelector('#viewer').open && {SETTINGS}"))
    assert told["LoRAs"] == "ink 1, glow -0.5" and told["Told sizes"] == "cut at 0x8"
    browser.press("Escape")
    browser.click("[aria-label='Leave out ink']")
    assert browser.run(CHOSEN) == [["glow", -0.5]] and browser.run("document.activeElement.id") == "loras"
    browser.click("#defaults")
    assert browser.run(CHOSEN) == [] and browser.run("document.querySelector('#crop').value") == ""


def test_what_is_wrong_with_them_is_told_beside_them(browser: Browser, xl: Server) -> None:
    ready(browser, xl)
    choose(browser, "ink")
    browser.fill("[data-name='ink']", "11")
    draw(browser, "a red apple")
    browser.wait("document.querySelector('#loras-complaint').innerText.includes('must be -10 to 10')")
    browser.fill("[data-name='ink']", "1")
    browser.run(OPEN)
    browser.fill("#target_size", "64")
    draw(browser, "a red apple")
    browser.wait("document.querySelector('#target_size-complaint').innerText.includes('WIDTHxHEIGHT')")
    assert browser.run(TILES) == 0


@pytest.mark.parametrize("view", ["wide", "narrow dark"])
def test_it_fits_and_axe_finds_no_serious_fault(browser: Browser, xl: Server, view: str) -> None:
    browser.resize(375 if "narrow" in view else 1440, 900, dark="dark" in view)
    ready(browser, xl)
    browser.run(OPEN)
    choose(browser, "ink")
    choose(browser, "glow")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert faults(browser) == []
