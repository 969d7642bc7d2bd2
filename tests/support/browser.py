"""Headless Chromium, driven over the pipe that its developer tools speak: no driver, no port, no package."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.patience import PATIENCE

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",  # root may not have one, and the pages are ours
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    "about:blank",
)


# Read when this is imported: the tests' own environment has none of these names (tests/conftest.py).
NEEDED = "LATENTD_NEED_CHROMIUM" in os.environ
HOW = "there is no Chromium: on Debian and Ubuntu `apt-get install chromium` brings one"


def chromium() -> str:
    """Return the path of a Chromium on this machine; without one the test is skipped, or fails where one is needed."""
    path = next((path for name in NAMES if (path := shutil.which(name))), None)
    if path is None:
        pytest.fail(HOW) if NEEDED else pytest.skip(HOW)
    return path


class PageError(Exception):
    """Is raised for a script of the page's that throws, and for a command that the browser refuses."""


class Browser:
    """Holds a running Chromium and one page in it. A new one has nothing of the last: its profile is a new folder."""

    def __init__(self, path: str, profile: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4; a shell puts ours there.
        move = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", move, "bash", path, *FLAGS[:-1], f"--user-data-dir={profile}", FLAGS[-1]],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._ids = itertools.count(1)
        self._rest = b""
        self._session = self._context = ""
        self.events: list[dict[str, Any]] = []
        self.fresh()

    def fresh(self) -> None:
        """Open a page that knows nothing of those before it: no history, no storage."""
        if self._context:
            self.call("Target.disposeBrowserContext", session=None, browserContextId=self._context)
        self.events.clear()
        self._context = self.call("Target.createBrowserContext", session=None)["browserContextId"]
        context = {"browserContextId": self._context}
        target = self.call("Target.createTarget", session=None, url="about:blank", **context)["targetId"]
        self._session = self.call("Target.attachToTarget", session=None, targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(1440, 900)

    def downloads(self, folder: Path) -> None:
        """Have the page's downloads come into a folder."""
        where = {"behavior": "allow", "downloadPath": str(folder), "browserContextId": self._context}
        self.call("Browser.setDownloadBehavior", session=None, **where)

    def close(self) -> None:
        """End it and all its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def call(self, method: str, *, session: str | None = "", **parameters: Any) -> dict[str, Any]:
        """Give a command and return its answer; what happens meanwhile goes into `events`. Errors: PageError."""
        message = {"id": next(self._ids), "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._read(time.monotonic() + 2 * PATIENCE)
            if answer.get("id") == message["id"]:
                if "error" in answer:
                    raise PageError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def _read(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._in], [], [], max(0.0, until - time.monotonic()))[0]:
                raise PageError("Chromium does not answer")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise PageError(f"Chromium has ended with {self._process.wait()}")
            self._rest += part
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)

    def goto(self, url: str) -> None:
        """Load a page; its own scripts may run on."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """Return what an expression of JavaScript is, a promise awaited. Errors: PageError."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait(self, condition: str, patience: float = PATIENCE) -> Any:
        """Return an expression's value as soon as it is true in the page.

        Errors: AssertionError with what the page says, after `patience` seconds.
        """
        until = time.monotonic() + patience
        looked = f"""new Promise((resolve) => {{
            const end = performance.now() + 1000;
            const look = () => {{
                let value = null;
                try {{ value = {condition}; }} catch {{}}
                if (value || performance.now() > end) resolve(value instanceof Element || value);
                else setTimeout(look, 10);
            }};
            look();
        }})"""
        while time.monotonic() < until:
            with contextlib.suppress(PageError):  # the page was left while it was looked at
                if value := self.run(looked):
                    return value
        raise AssertionError(f"not in {patience:.0f} s: {condition}; the page says: {self.text()}")

    def text(self) -> str:
        return self.run("document.body?.innerText ?? ''")

    def click(self, selector: str) -> None:
        """Click in the middle of an element with a mouse, as a user does, once it is there and nothing covers it."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"{found} && !{found}.disabled && {found}.getClientRects().length")
        x, y = self.run(
            f"(() => {{ const e = {found}; e.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, selector: str, *spots: tuple[float, float]) -> None:
        """Press the mouse in an element, move it over spots, as shares of its width and height, and let it go."""
        self.wait(f"document.querySelector({json.dumps(selector)}).getClientRects().length")
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        left, top, width, height = self.run(f"(() => {{ const r = {box}; return [r.x, r.y, r.width, r.height]; }})()")
        where = [{"x": left + x * width, "y": top + y * height} for x, y in spots]
        held = {"button": "left", "buttons": 1, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", **held, **where[0])
        for spot in where[1:]:
            self.call("Input.dispatchMouseEvent", type="mouseMoved", **held, **spot)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", button="left", clickCount=1, **where[-1])

    def drop(self, selector: str, file: Path) -> None:
        """Drop a file in the middle of an element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.run(f"(() => {{ const r = {box}; return [r.x + r.width / 2, r.y + r.height / 2]; }})()")
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in a file input, as its dialog does."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.call("DOM.setFileInputFiles", files=[str(file)], objectId=found["result"]["objectId"])

    def fill(self, selector: str, text: str) -> None:
        """Replace what a field holds by typing."""
        self.run(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select(); }})()")
        self.call("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key; modifiers: 2 is Ctrl."""
        code = {
            "Enter": 13,
            "Escape": 27,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
            "Tab": 9,
            " ": 32,
        }
        known = {"key": key, "code": key, "windowsVirtualKeyCode": code[key], "modifiers": modifiers}
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, **known)

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """Return what the page has logged as an error or thrown, since the last time."""
        self.run("0")
        logged = []
        for event in self.events:
            parameters = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                logged.append(details.get("exception", {}).get("description") or details["text"])
            elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                logged.append(parameters["entry"]["text"])
        self.events.clear()
        return logged


@contextlib.contextmanager
def browsing(path: str, profile: Path) -> Iterator[Browser]:
    browser = Browser(path, profile)
    try:
        yield browser
    finally:
        browser.close()
