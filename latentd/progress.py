"""Progress bars: one a prompt where people watch, one for everything elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol

from tqdm import tqdm

from latentd.events import Event, Image, Preview, Queued, Started, Step

MOST_BARS = 8  # more would scroll the terminal


class Progress(Protocol):
    """Shows the events of several requests; `request` is a request's place in the list of prompts."""

    def event(self, request: int, event: Event) -> None: ...
    def say(self, line: str, error: bool = False) -> None:
        """Print a line (stdout, or stderr) without damaging what is shown."""
        ...

    def close(self) -> None: ...


class Tally:
    """How far one request has come: `done` of `total` steps over all its pictures; 0 of 0 until Queued."""

    def __init__(self) -> None:
        self.total = 0
        self.state = "sent"
        self._steps = 0
        self._done: dict[int, int] = {}  # of each picture that has started

    @property
    def done(self) -> int:
        return sum(self._done.values())

    def add(self, event: Event) -> None:
        if isinstance(event, Queued):
            self._steps, self.total = event.steps, event.steps * event.images
            self.state = f"queued, {event.ahead} ahead" if event.ahead else "queued"
        elif isinstance(event, Started):
            self._done.setdefault(event.index, 0)
            self.state = "drawing"
        elif isinstance(event, Step | Preview):
            self._done[event.index] = max(event.step, self._done.get(event.index, 0))
        elif isinstance(event, Image):
            self._done[event.index] = self._steps  # the last Step may have been skipped for a slow reader
            if self.done == self.total:
                self.state = "done"


class Bars:
    """tqdm bars on stderr; stdout stays free for the lines that say what was written."""

    def __init__(self, prompts: Sequence[str]) -> None:
        tqdm.monitor_interval = 0  # no monitor thread; every event redraws
        watched = sys.stdout.isatty() and sys.stderr.isatty()
        self._tallies = [Tally() for _ in prompts]
        self._each = watched and len(prompts) <= MOST_BARS
        titles = [title(prompt) for prompt in prompts] if self._each else [f"{len(prompts)} prompts"]
        if len(prompts) == 1:
            titles = [title(prompts[0])]
        self._bars = [
            # A log gets a line every ten seconds, not ten a second.
            tqdm(total=None, desc=text, unit="step", position=n, mininterval=0.1 if watched else 10, dynamic_ncols=True)
            for n, text in enumerate(titles)
        ]

    def event(self, request: int, event: Event) -> None:
        self._tallies[request].add(event)
        if self._each:
            self._show(self._bars[request], self._tallies[request : request + 1])
            self._bars[request].set_postfix_str(self._tallies[request].state, refresh=False)
        else:
            self._show(self._bars[0], self._tallies)

    def say(self, line: str, error: bool = False) -> None:
        tqdm.write(line, file=sys.stderr if error else sys.stdout)
        (sys.stderr if error else sys.stdout).flush()

    def close(self) -> None:
        for bar in self._bars:
            bar.close()

    @staticmethod
    def _show(bar: tqdm, tallies: Sequence[Tally]) -> None:
        bar.total = sum(tally.total for tally in tallies)
        bar.update(sum(tally.done for tally in tallies) - bar.n)


def title(prompt: str, width: int = 24) -> str:
    """The prompt on one line, cut to `width` characters."""
    line = " ".join(prompt.split())
    return line if len(line) <= width else line[: width - 1] + "…"
