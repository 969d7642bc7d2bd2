"""Pictures as conditions, on the page: dropped, chosen, painted on and started from; what is drawn is the oracle's."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.generate import generate
from engines.model import Model
from server.app import Server
from server.upload import original_of
from tests.support.browser import Browser
from tests.support.held import eventually
from tests.support.jobs import Pixels, decoded
from tests.support.serving import serving
from tests.support.uploads import colours, saved
from tests.web.acts import STAGE, TILES, draw, drawn, faults, ready

ASKED = {"steps": 5, "guidance": 2.0, "sampler": "euler", "seed": 7}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A picture file of the size that the model draws."""
    path = tmp_path / "start.png"
    path.write_bytes(saved(colours(24, 24)))
    return path


@pytest.fixture(scope="module")
def styled(towers: Model) -> Iterator[Server]:
    """A server whose model has a style adapter and a judge."""
    with serving(towers, seats=4, http_port=0) as server:
        yield server


def settle(browser: Browser, **fields: object) -> None:
    """Type settings into the form."""
    for name, value in {**ASKED, **fields}.items():
        if name in ("sampler", "strength", "fit", "images", "keep", "style_weight"):
            change = "new Event('input', { bubbles: true })"
            field = f"document.querySelector('#{name}')"
            browser.run(f"({field}.value = {str(value)!r}, {field}.dispatchEvent({change}))")
        else:
            browser.fill(f"#{name}", str(value))


def bytes_of(browser: Browser, what: str, index: int = 0) -> bytes:
    """A blob of a picture in the gallery, newest first: `blob`, `original.mask` .."""
    text = browser.run(f"""(async () => {{
        const {{ Store }} = await import("/static/store.js");
        const {{ base64Of }} = await import("/static/api.js");
        return base64Of((await Store.open()).pictures[{index}].{what});
    }})()""")
    return base64.b64decode(text)


def expected(model: Model, prompt: str, start: bytes, strength: float, mask: bytes | None = None) -> Pixels:
    original = original_of(start, mask, (24, 24), "crop")
    return generate(model, prompt, **ASKED, original=original, strength=strength)


def test_a_dropped_picture_is_started_from(opened: Browser, wired: Model, file: Path) -> None:
    settle(opened)
    drawn(opened, "a red apple")
    opened.drop("#pictures", file)  # anywhere on the page
    opened.wait("!document.querySelector('#original-chosen').hidden")
    assert opened.run("document.querySelector('#fit-part').hidden"), "it has the shape that is drawn"
    settle(opened, strength=0.4)
    assert opened.run("document.querySelector('#strength-words').textContent") == "40%"
    drawn(opened, "a red apple")
    got = decoded(bytes_of(opened, "blob"))
    np.testing.assert_array_equal(got, expected(wired, "a red apple", file.read_bytes(), 0.4))
    assert (got != decoded(bytes_of(opened, "blob", 1))).any()
    opened.click("#original-remove")
    drawn(opened, "a red apple")
    assert bytes_of(opened, "blob") == bytes_of(opened, "blob", 2), "without it all is as before"
    assert opened.complaints() == []


def test_what_is_not_painted_stays(opened: Browser, wired: Model, file: Path) -> None:
    settle(opened, strength=0.8)
    opened.choose("#init_image", file)
    opened.click("#mask")
    opened.wait("location.hash === '#paint' && document.querySelector('#painter').open")
    opened.drag("#easel-veil", (0.25, 0.25), (0.5, 0.5), (0.75, 0.5))
    opened.click("#painted")
    opened.wait("!document.querySelector('#painter').open && !document.querySelector('#original-veil').hidden")
    drawn(opened, "a red apple")
    start, mask = file.read_bytes(), bytes_of(opened, "original.mask")
    white = decoded(mask)[..., 0] >= 128
    assert white[6, 6] and white[12, 16] and not white[20, 3] and 20 < white.sum() < 200
    got = decoded(bytes_of(opened, "blob"))
    np.testing.assert_array_equal(got[~white], decoded(start)[~white])
    assert (got[white] != decoded(start)[white]).any()
    np.testing.assert_array_equal(got, expected(wired, "a red apple", start, 0.8, mask))


def test_the_painters_tools(opened: Browser, file: Path) -> None:
    opened.drop("#original", file)
    opened.click("#mask")

    def share() -> float:
        return opened.run("""(() => {
            const veil = document.querySelector("#easel-veil");
            const { data } = veil.getContext("2d").getImageData(0, 0, veil.width, veil.height);
            let painted = 0;
            for (let at = 3; at < data.length; at += 4) painted += data[at] >= 128;
            return (4 * painted) / data.length;
        })()""")

    assert share() == 0 and opened.run("document.querySelector('#undo').disabled")
    opened.drag("#easel-veil", (0.2, 0.5), (0.8, 0.5))
    stroke = share()
    assert 0.05 < stroke < 0.2
    opened.click("#invert")
    assert share() == pytest.approx(1 - stroke, abs=0.01)
    opened.click("#undo")
    assert share() == stroke
    opened.click("#eraser")
    opened.drag("#easel-veil", (0.5, 0.4), (0.5, 0.6))
    assert 0 < share() < stroke
    opened.click("#brush")
    opened.run("document.querySelector('#easel-veil').focus()")
    before = share()
    for key in ("ArrowDown", "ArrowDown", " "):
        opened.press(key)
    assert share() > before, "by the keyboard"
    opened.click("#wipe")
    assert share() == 0
    opened.click("#undo")
    assert share() > before
    opened.click("#wipe")
    opened.run("history.back()")
    opened.wait("!document.querySelector('#painter').open")
    assert opened.run("document.querySelector('#original-veil').hidden"), "nothing painted is no mask"


def test_one_of_the_gallery_is_started_from_and_its_settings_come_back(opened: Browser, wired: Model) -> None:
    settle(opened, strength=0.4)
    drawn(opened, "a red apple")
    opened.click("#grid .start")
    opened.wait("!document.querySelector('#original-chosen').hidden && document.activeElement.id === 'prompt'")
    opened.click("#mask")
    opened.drag("#easel-veil", (0.2, 0.2), (0.8, 0.2))
    opened.press("Escape")
    opened.wait("!document.querySelector('#painter').open")
    drawn(opened, "the blue cat")
    first, mask = bytes_of(opened, "blob", 1), bytes_of(opened, "original.mask")
    assert bytes_of(opened, "original.blob") == first
    np.testing.assert_array_equal(decoded(bytes_of(opened, "blob")), expected(wired, "the blue cat", first, 0.4, mask))
    opened.click("#original-remove")
    settle(opened, strength=0.9, seed=8)
    opened.click("#grid .tile")
    opened.wait("document.querySelectorAll('#viewer-sources img').length === 2")
    assert "its painted part may change by 40%" in opened.run("document.querySelector('#viewer-settings').innerText")
    opened.click("#reuse")
    opened.wait("!document.querySelector('#original-veil').hidden")
    assert opened.run("document.querySelector('#strength').value") == "0.4"
    drawn(opened, "the blue cat")
    assert bytes_of(opened, "blob") == bytes_of(opened, "blob", 1), "the same picture again"
    opened.click("#grid .tile")
    opened.click("#start-this")
    opened.wait("!document.querySelector('#viewer').open && document.querySelector('#original-veil').hidden")
    assert not opened.run("document.querySelector('#original-chosen').hidden"), "that one, and nothing painted on it"


def test_a_pasted_picture_of_another_shape(opened: Browser, tmp_path: Path) -> None:
    path = tmp_path / "wide.jpg"
    path.write_bytes(saved(colours(60, 30), "jpeg"))
    data = base64.b64encode(path.read_bytes()).decode()
    opened.run(f"""(async () => {{
        const {{ blobOf }} = await import("/static/api.js");
        const clipboardData = new DataTransfer();
        clipboardData.items.add(new File([blobOf("{data}", "image/jpeg")], "a.jpg", {{ type: "image/jpeg" }}));
        const paste = new ClipboardEvent("paste", {{ clipboardData, bubbles: true, cancelable: true }});
        document.querySelector("#prompt").dispatchEvent(paste);
    }})()""")
    opened.wait("!document.querySelector('#fit-part').hidden")
    settle(opened, fit="pad", strength=0.6)
    drawn(opened, "a red apple")
    assert Image.open(path).size == (60, 30) and decoded(bytes_of(opened, "blob")).shape == (24, 24, 3)
    path.write_bytes(b"no picture")
    opened.choose("#init_image", path)
    said = "document.querySelector('#init_image-complaint').textContent"
    assert "cannot show that file as a picture" in opened.wait(said)


def test_what_the_server_refuses_of_a_picture_is_said_beside_it(opened: Browser, file: Path) -> None:
    opened.drop("#original", file)
    opened.wait("!document.querySelector('#original-chosen').hidden")
    settle(opened, steps=2, strength=0.05)
    draw(opened, "a red apple")
    said = opened.wait("document.querySelector('#strength-complaint').textContent")
    assert "strength is 0.05, which makes none of 2 steps" in said
    assert opened.run("document.activeElement.id") == "strength"


def test_before_its_script_runs_the_page_shows_no_empty_choices(browser: Browser, server: Server) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.call("Page.navigate", url=f"http://127.0.0.1:{server.http_port}/")
    shown = "['prompt', 'settings', 'original'].map((id) => document.getElementById(id)?.getClientRects().length)"
    eventually(lambda: browser.run(shown), [1, 0, 0])
    assert browser.run("document.querySelector('#served').textContent") == "Getting ready…"
    browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_what_the_model_lacks_is_not_offered(opened: Browser) -> None:
    assert opened.run("document.querySelector('#style').hidden && !document.querySelector('#original').hidden")
    settle(opened, images=4)
    assert opened.run("document.querySelector('#keep-part').hidden")


def test_a_style_and_the_best_of_several(browser: Browser, styled: Server, file: Path) -> None:
    ready(browser, styled)
    settle(browser, images=4, keep=2)
    drawn_one = "document.querySelector('.drawing.stage')?.dataset.state === 'finished'"
    draw(browser, "a red apple")
    browser.wait(f"{TILES} === 2 && {drawn_one}")
    assert browser.run(f"[...{STAGE}.querySelectorAll('.frame')].filter((frame) => !frame.hidden).length") == 2
    browser.click("#grid .tile")
    browser.wait("document.querySelector('#viewer-settings').innerText.includes('by the judge')")
    browser.press("Escape")
    browser.wait("!document.querySelector('#viewer').open")
    settle(browser, images=1)
    draw(browser, "a red apple")
    browser.wait(f"{TILES} === 3 && {drawn_one}")
    browser.choose("#style_image", file)
    browser.wait("!document.querySelector('#style-chosen').hidden")
    settle(browser, style_weight=1)
    draw(browser, "a red apple")
    browser.wait(f"{TILES} === 4 && {drawn_one}")
    assert bytes_of(browser, "blob") != bytes_of(browser, "blob", 1)
    assert browser.complaints() == []


def test_a_hint_where_the_words_name_nothing_that_it_knows(opened: Browser) -> None:
    names = """import("/static/form/things.js").then(({ names, nearest }) => [
        names("two RED apples, ink", "red apple"), names("a red-hot apple", "red apple"), names("cart", "car"),
        nearest("an apple tree", ["fox", "green apple", "palm tree"]).join()])"""
    assert opened.run(names) == [True, False, False, "green apple,palm tree"]
    unknown = "document.querySelector('#unknown')"
    opened.run("""import("/static/form/things.js").then(({ Things }) => {
        const things = new Things((prompt) => (document.querySelector("#prompt").value = prompt));
        things.offer({ things: ["fox", "red apple"], examples: [{ prompt: "fox, ink style" }] });
        things.look("a spaceship of apples");
    })""")
    assert opened.wait(f"!{unknown}.hidden && {unknown}.innerText").startswith("This model knows 2 things")
    opened.click("#unknown-ideas button")
    assert opened.run("document.querySelector('#prompt').value") == "red apple, ink style"


@pytest.mark.parametrize("painting", [False, True])
def test_it_fits_and_axe_finds_no_serious_fault(browser: Browser, styled: Server, file: Path, painting: bool) -> None:
    ready(browser, styled)
    browser.choose("#init_image", file)
    browser.choose("#style_image", file)
    browser.wait(
        "!document.querySelector('#style-chosen').hidden && !document.querySelector('#original-chosen').hidden"
    )
    settle(browser, images=4)
    browser.fill("#prompt", "a spaceship")
    if painting:
        browser.click("#mask")
        browser.drag("#easel-veil", (0.2, 0.2), (0.8, 0.8))
    for width, height in ((375, 740), (1440, 900)):
        for dark in (False, True):
            browser.resize(width, height, dark)
            assert browser.run("document.documentElement.scrollWidth") <= width
            dialog = "document.querySelector('dialog[open]')"
            assert browser.run(f"!{dialog} || {dialog}.scrollWidth <= {dialog}.clientWidth")
            assert faults(browser) == []


def test_of_files_that_are_read_at_once_the_last_counts(opened: Browser) -> None:
    """Though the first takes longer: it is none that somebody wants any more."""
    width = opened.run("""(async () => {
        const { Source } = await import("/static/form/source.js");
        const source = new Source("original", "init_image");
        const read = createImageBitmap;
        const picture = (side) => {
            const canvas = new OffscreenCanvas(side, side);
            canvas.getContext("2d").fillRect(0, 0, side, side);
            return canvas.convertToBlob({ type: "image/png" });
        };
        let go;
        const gate = new Promise((resolve) => (go = resolve));
        globalThis.createImageBitmap = async (blob) => (await gate, read(blob));
        const first = source.take(await picture(8));
        globalThis.createImageBitmap = read;
        await source.take(await picture(16));
        go();
        await first;
        return source.picture.width;
    })()""")
    assert width == 16


def test_what_is_done_is_a_share_of_the_steps_that_are_made(opened: Browser) -> None:
    """Of five that were asked for four are made where a picture is started from."""
    share = opened.run("""(async () => {
        const { Drawing } = await import("/static/drawing.js");
        const events = [["queued", { steps: 5, ahead: 0 }], ["step", { index: 0, step: 4, steps: 4 }]];
        const text = events.map(([name, data]) => `event: ${name}\\ndata: ${JSON.stringify(data)}\\n\\n`).join("");
        const theirs = fetch;
        globalThis.fetch = async () => new Response(text);
        const drawing = new Drawing({ prompt: "a", images: 1, steps: 5 });
        await drawing.run();
        globalThis.fetch = theirs;
        return drawing.share;
    })()""")
    assert share == 1
