"""The page as a browser shows it: Chromium on one side, a server on the other, nothing between them replaced."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from server.app import Server
from tests.support.browser import Browser
from tests.support.held import Held, eventually
from tests.support.relay import relaying
from tests.web.acts import STAGE, TILES, draw, drawn, faults, ready


def metric(server: Server, name: str, **labels: str) -> float | None:
    return server.metrics.registry.get_sample_value(f"latentd_{name}", {"model": server.service.model_id, **labels})


def test_previews_come_before_the_picture(opened: Browser, held: Held) -> None:
    held.hold()
    assert "Draws what nobody would recognise" in opened.text() and opened.run("document.querySelector('#now').hidden")
    opened.click("#ideas button")
    assert opened.run("document.querySelector('#prompt').value") == "a red apple"
    held.begun()
    assert opened.run(f"{STAGE}.querySelector('img').src") == ""
    held.let()
    held.begun()
    opened.wait(f"{STAGE}.querySelector('img').src && {STAGE}.dataset.state === 'forming'")
    assert opened.wait(f"{STAGE}.querySelector('.state').textContent").startswith("Step 1 of ")
    assert opened.run("document.querySelector('#gallery').hidden"), "a preview is no picture"
    held.release()
    opened.wait(f"{TILES} === 1 && {STAGE}.dataset.state === 'finished'")
    opened.wait("document.querySelector('#grid img').naturalWidth === 24")
    assert opened.complaints() == []


def test_nothing_comes_from_elsewhere(opened: Browser, server: Server) -> None:
    drawn(opened, "a red apple")
    asked = [event["params"]["request"]["url"] for event in opened.events if "request" in event.get("params", {})]
    assert len(asked) > 15
    ours = (f"http://127.0.0.1:{server.http_port}/", f"blob:http://127.0.0.1:{server.http_port}/")
    assert [url for url in asked if not url.startswith(ours)] == []


def test_each_of_several_knows_its_place(browser: Browser, narrow: Server, held: Held) -> None:
    ready(browser, narrow)
    browser.fill("#steps", "2")
    held.hold()
    draw(browser, "first")
    held.begun()
    draw(browser, "second")
    browser.wait("document.querySelectorAll('.drawing')[1].dataset.state === 'waiting'")
    draw(browser, "third")
    state = "document.querySelectorAll('.drawing')[2].querySelector('.state').textContent"
    browser.wait(f"{state}.startsWith('In the queue, 1 picture before it')")
    browser.wait(f"/about .* left/.test({state})")
    browser.run("document.querySelectorAll('.drawing')[1].querySelector('.acts button').click()")
    browser.wait("document.querySelectorAll('.drawing').length === 2")
    # While the same step is under way, after which the one that was cancelled leaves the queue.
    browser.wait(f"{state.replace('[2]', '[1]')}.startsWith('Next in the queue')")
    for _ in range(3):  # two of the first and one of the third: the last one ends when the first picture is here
        held.let()
        held.begun()
    browser.wait(f"{TILES} === 1")
    held.release()
    browser.wait(f"{TILES} === 2")
    assert browser.run("[...document.querySelectorAll('#grid .tile')].map((tile) => tile.title)") == ["third", "first"]


def test_one_that_is_cancelled_frees_its_seat_within_a_step(opened: Browser, server: Server, held: Held) -> None:
    cancelled = metric(server, "cancelled_total", where="seat") or 0
    ended = metric(server, "requests_total", door="page", code="CANCELLED") or 0
    images, steps = metric(server, "images_total"), metric(server, "steps_total") or 0
    held.hold()
    draw(opened, "a red apple")
    held.begun()
    assert metric(server, "rows_live") == 2
    opened.click(".drawing .acts button")
    opened.wait("document.querySelectorAll('.drawing').length === 0 && !document.querySelector('#welcome').hidden")
    eventually(lambda: metric(server, "requests_total", door="page", code="CANCELLED"), ended + 1)
    held.release()
    eventually(lambda: metric(server, "cancelled_total", where="seat"), cancelled + 1)
    eventually(lambda: metric(server, "rows_live"), 0)
    assert len(held.runs) == 1 and metric(server, "images_total") == images
    assert metric(server, "steps_total") == steps + 1


def test_what_is_wrong_is_said_at_its_field(opened: Browser) -> None:
    opened.fill("#steps", "900")
    draw(opened, "a red apple")
    said = opened.wait("document.querySelector('#steps-complaint').textContent")
    assert "900" in said and "150" in said
    assert (
        opened.run("document.activeElement.id") == "steps"
        and opened.run("document.activeElement.ariaInvalid") == "true"
    )
    opened.fill("#steps", "2")
    assert opened.run("document.querySelector('#steps-complaint').textContent") == ""
    draw(opened, "   ")
    assert opened.wait("document.querySelector('#prompt-complaint').textContent").startswith("Write what")
    drawn(opened, "a red apple")


def test_a_busy_server_is_told_in_words_and_asked_again(browser: Browser, narrow: Server, held: Held) -> None:
    ready(browser, narrow)
    held.hold()
    draw(browser, "first")
    held.begun()
    for waiting in (1, 2):
        draw(browser, "another")
        browser.wait(f"document.querySelectorAll('.drawing')[{waiting}].dataset.state === 'waiting'")
    draw(browser, "one too many")
    alert = "document.querySelectorAll('.drawing')[3].querySelector('[role=alert]').textContent"
    assert "as much to do" in browser.wait(alert)
    held.release()
    browser.wait(f"{TILES} === 3")
    browser.click(".drawing[data-state=failed] .strong")
    browser.wait(f"{TILES} === 4")


def test_a_lost_server_is_told_in_words_and_found_again(browser: Browser, server: Server, held: Held) -> None:
    assert server.http_port
    with relaying(server.http_port) as wire:
        ready(browser, wire)
        held.hold()
        draw(browser, "first")
        held.begun()
        browser.wait(f"{STAGE}.dataset.state === 'forming'")
        wire.cut()
        alert = "document.querySelector('.drawing:last-child [role=alert]').textContent"
        assert browser.wait(alert) == "The connection to the server broke while it was drawing. Is it still running?"
        held.release()
        browser.wait("document.querySelector('#served').textContent.startsWith('No connection')")
        draw(browser, "second")
        browser.wait(f"{alert} === 'The server cannot be reached. Is it still running?'")
        wire.mend()
        browser.wait("document.querySelector('#served').dataset.state === 'ready'")
        browser.click(".drawing:last-child .strong")
        browser.wait(f"{TILES} === 1 && document.querySelector('#grid button').title === 'second'")


def test_a_reload_keeps_the_gallery_and_the_settings(opened: Browser) -> None:
    opened.fill("#steps", "3")
    drawn(opened, "a red apple", "the blue cat")
    opened.call("Page.reload")
    opened.wait(
        f"document.readyState === 'complete' && {TILES} === 2 && !document.querySelector('button.draw').disabled"
    )
    opened.wait("[...document.querySelectorAll('#grid img')].every((image) => image.naturalWidth === 24)")
    assert opened.run("document.querySelector('#prompt').value") == "the blue cat"
    assert opened.run("document.querySelector('#steps').value") == "3"
    opened.click("#grid button")
    opened.wait("!document.querySelector('#film').hidden")
    assert 1 <= int(opened.run("document.querySelector('#moment').max")) <= 3, "its film too, and the picture last"


def test_back_closes_what_was_opened(opened: Browser) -> None:
    drawn(opened, "a red apple", "the blue cat")
    opened.click("#grid button")
    opened.wait("document.querySelector('#viewer').open && location.hash === '#picture-2'")
    opened.press("ArrowRight")
    opened.wait(
        "location.hash === '#picture-1' && document.querySelector('#viewer-title').textContent === 'a red apple'"
    )
    opened.run("history.back()")
    opened.wait("!document.querySelector('#viewer').open && location.hash === ''")
    opened.run("history.forward()")
    opened.wait("document.querySelector('#viewer').open && location.hash === '#picture-1'")
    opened.press("Escape")
    opened.wait("!document.querySelector('#viewer').open && location.hash === ''")
    assert opened.run("document.querySelector('#prompt').value") == "the blue cat"


def test_settings_are_used_again(opened: Browser) -> None:
    opened.fill("#steps", "3")
    opened.fill("#seed", "7")
    drawn(opened, "a red apple")
    opened.click("#defaults")
    opened.fill("#prompt", "the blue cat")
    assert opened.run("document.querySelector('#seed').value") == ""
    opened.click("#grid button")
    opened.click("#reuse")
    opened.wait("document.activeElement.id === 'prompt' && !document.querySelector('#viewer').open")
    values = opened.run("['prompt', 'steps', 'seed'].map((id) => document.querySelector(`#${id}`).value)")
    assert values == ["a red apple", "3", "7"]
    opened.press("Enter", modifiers=2)
    opened.wait(f"{TILES} === 2")
    same = "Promise.all([...document.querySelectorAll('#grid img')].map((i) => fetch(i.src).catch(() => null)))"
    assert opened.run(f"{same} && document.querySelector('#seed').value") == "7", "a seed that was chosen stays"


def test_two_are_compared(opened: Browser) -> None:
    drawn(opened, "a red apple", "the blue cat", "third")
    opened.run("document.querySelector('#grid button').focus()")
    opened.press("ArrowRight")
    assert opened.run("document.activeElement.title") == "the blue cat"
    opened.click("#pick")
    opened.click("#grid li:nth-child(3) .tile")
    assert opened.run("document.querySelectorAll('#grid [aria-pressed=true]').length") == 1
    opened.click("#grid li:nth-child(1) .tile")
    opened.wait("document.querySelector('#compare').open && location.hash === '#compare-1-3'")
    rows = "[...document.querySelectorAll('#differences tr.differs')].map((row) => row.innerText.split(/\\s*\\t/))"
    assert opened.run(rows)[0] == ["Prompt", "a red apple", "third"]
    clip = "getComputedStyle(document.querySelector('#left-picture')).clipPath"
    before = opened.run(clip)
    opened.press("ArrowLeft")
    assert opened.wait(f"{clip} !== {json.dumps(before)}")
    opened.run("history.back()")
    opened.wait("!document.querySelector('#compare').open")


def test_the_film_plays_to_the_picture(opened: Browser) -> None:
    drawn(opened, "a red apple")
    opened.click(".drawing .frame")
    opened.wait("!document.querySelector('#film').hidden")
    noted = "new MutationObserver(() => seen.push(document.querySelector('#moment').value))"
    opened.run(
        f"{{ globalThis.seen = []; {noted}.observe(document.querySelector('#moment'), {{ attributes: true }}); }}"
    )
    opened.click("#play")
    opened.wait("seen.at(-1) === document.querySelector('#moment').max")
    last = int(opened.run("document.querySelector('#moment').max"))
    assert opened.run("seen") == [str(number) for number in range(last + 1)]
    assert opened.run("document.querySelector('#moment-name').textContent") == "finished"


@pytest.mark.parametrize("prompt", ["a red apple, 20% \u00e9t\u00e9", "\u8d64\u3044\u308a\u3093\u3054"])
def test_a_downloaded_picture_carries_its_settings(opened: Browser, prompt: str, tmp_path: Path) -> None:
    opened.downloads(tmp_path)
    opened.run("document.querySelector('#without').open = true")
    opened.fill("#negative_prompt", "blur")
    opened.fill("#seed", "7")
    opened.run("document.querySelector('#sampler').value = 'euler'")
    drawn(opened, prompt)
    opened.click("#grid button")
    opened.click("#download")
    eventually(lambda: [path.suffix for path in tmp_path.iterdir()], [".png"])
    (path,) = tmp_path.iterdir()
    with Image.open(path) as picture:
        picture.load()
        text = picture.info["parameters"]
        assert picture.size == (24, 24)
    first, second, third = text.split("\n")
    assert (first, second) == (prompt, "Negative prompt: blur")
    values = dict(part.split(": ") for part in third.split(", "))
    steps, guidance = (opened.run(f"document.querySelector('#{id}').value") for id in ("steps", "guidance"))
    known = {"Steps": steps, "CFG scale": guidance, "Seed": "7", "Size": "24x24", "Model": "tiny", "Version": "latentd"}
    assert values == {**known, "Sampler": "Euler", "Schedule type": "Uniform"}
    assert (b"iTXt" in path.read_bytes()) == (max(map(ord, prompt)) > 255)


def test_pictures_are_deleted(opened: Browser) -> None:
    drawn(opened, "first", "second", "third")
    opened.click("#grid button")
    opened.click("#delete")
    opened.press("Escape")
    opened.wait("!document.querySelector('#confirm').open")
    assert opened.run(TILES) == 3, "whoever changes their mind loses nothing"
    opened.click("#delete")
    opened.click("#confirm-yes")
    opened.wait(f"{TILES} === 2 && !document.querySelector('#viewer').open")
    opened.click("#clear")
    assert "all 2 pictures" in opened.wait("document.querySelector('#confirm-question').textContent")
    opened.click("#confirm-yes")
    opened.wait("document.querySelector('#gallery').hidden && !document.querySelector('#welcome').hidden")
    opened.call("Page.reload")
    opened.wait("document.readyState === 'complete' && !document.querySelector('button.draw').disabled")
    assert opened.run(TILES) == 0


def test_the_oldest_pictures_go(opened: Browser) -> None:
    kept = opened.run("""(async () => {
        const { Store } = await import("/static/store.js");
        const store = await Store.open();
        const blob = new Blob(["."]);
        for (let seed = 0; seed < Store.most + 2; seed++) await store.add({ seed, blob }, [blob]);
        const again = await Store.open();
        const films = await Promise.all([1, 2, 3].map((id) => again.film(id)));
        const seeds = [again.pictures.at(0).seed, again.pictures.at(-1).seed];
        return [again.pictures.length, ...seeds, ...films.map((film) => film.length)];
    })()""")
    assert kept == [300, 301, 2, 0, 0, 1]


def test_the_policy_stops_what_is_no_file_of_the_page(opened: Browser) -> None:
    opened.run("""
        globalThis.broken = [];
        addEventListener("securitypolicyviolation", (event) => broken.push(event.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "globalThis.ran = true";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", '<p style="color: red" onclick="globalThis.ran = true">x</p>');
        document.body.lastChild.click();
        fetch("http://localhost:1/").catch(() => {});
    """)
    opened.wait(
        "['script-src-elem', 'style-src-attr', 'script-src-attr', 'connect-src'].every((one) => broken.includes(one))"
    )
    assert opened.run("globalThis.ran") is None


VIEWS = {
    "empty": "null",
    "gallery": "null",
    "picking": "document.querySelector('#pick').click()",
    "viewer": "document.querySelector('#grid button').click()",
    "compare": "(document.querySelector('#pick').click(), document.querySelectorAll('#grid .tile')[0].click(),"
    "document.querySelectorAll('#grid .tile')[1].click())",
}


def test_a_page_of_few_pictures_does_not_scroll_beside_its_form(opened: Browser) -> None:
    opened.resize(1440, 900)
    taller = "(() => { const form = document.querySelector('#form'); return form.scrollHeight > form.clientHeight; })()"
    assert opened.run("document.querySelector('#settings').open") and opened.run(taller)
    assert opened.run("document.documentElement.scrollHeight") == 900


@pytest.mark.parametrize("view", VIEWS)
def test_it_fits_and_axe_finds_no_serious_fault(opened: Browser, view: str) -> None:
    if view != "empty":
        drawn(opened, "a red apple", "an" + "".join(f" extremely{n}" for n in range(20)) + " long" * 20 + "long" * 40)
    opened.run(VIEWS[view])
    for width, height in ((375, 740), (1440, 900)):
        for dark in (False, True):
            opened.resize(width, height, dark)
            assert opened.run("innerWidth") == width
            assert opened.run("document.documentElement.scrollWidth") <= width
            dialog = "document.querySelector('dialog[open]')"
            assert opened.run(f"!{dialog} || {dialog}.scrollWidth <= {dialog}.clientWidth")
            assert faults(opened) == []


def test_a_request_that_runs_has_no_serious_fault(opened: Browser, held: Held) -> None:
    held.hold()
    draw(opened, "a red apple")
    held.begun()
    draw(opened, "the blue cat")
    opened.wait("document.querySelectorAll('.drawing').length === 2")
    for dark in (False, True):
        opened.resize(1440, 900, dark)
        assert faults(opened) == []
    assert math.isclose(opened.run("document.querySelector('.stage progress').value"), 0)
