"""Progress bars: one a prompt where people watch, one for all where only stderr is a terminal, none in a log."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol

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
    """Counts how far one request has come: `done` of `total` steps over all its pictures; 0 of 0 until Queued."""

    def __init__(self) -> None:
        self.total = 0
        self.state = "sent"
        self._steps = self._images = 0
        self._done: dict[int, int] = {}  # of each picture that has started

    @property
    def done(self) -> int:
        return sum(self._done.values())

    def add(self, event: Event) -> None:
        if isinstance(event, Queued):
            self._steps, self._images = event.steps, event.images
            self.total = event.steps * event.images
            self.state = f"queued, {event.ahead} ahead" if event.ahead else "queued"
        elif isinstance(event, Started):
            self._done.setdefault(event.index, 0)
            self.state = "drawing"
        elif isinstance(event, Step | Preview):
            if isinstance(event, Step) and event.steps:  # fewer than were asked for, of what begins with a picture
                self._steps, self.total = event.steps, event.steps * self._images
            self._done[event.index] = max(event.step, self._done.get(event.index, 0))
        elif isinstance(event, Image):
            self._done[event.index] = self._steps  # the last Step may have been skipped for a slow reader
            if self.done == self.total:
                self.state = "done"


class Bars:
    """Shows tqdm bars on stderr; stdout stays free for the lines that say what was written.

    A bar is drawn again and again over itself, which only a terminal shows: a log, a pipe and a dumb terminal get the
    lines alone.
    """

    def __init__(self, prompts: Sequence[str]) -> None:
        tqdm.monitor_interval = 0  # no monitor thread; every event redraws
        self._prompts = prompts
        self._tallies = [Tally() for _ in prompts]
        self._watched = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._each = self._watched and sys.stdout.isatty() and len(prompts) <= MOST_BARS
        self._bars: dict[int, tqdm[NoReturn]] = {}  # made at the first event: a server that refuses gets no bar

    def event(self, request: int, event: Event) -> None:
        if not self._watched:
            return
        self._tallies[request].add(event)
        bar = self._bar(request if self._each else 0)
        tallies = self._tallies[request : request + 1] if self._each else self._tallies
        bar.total = sum(tally.total for tally in tallies)
        if self._each:
            bar.set_postfix_str(self._tallies[request].state, refresh=False)
        bar.update(sum(tally.done for tally in tallies) - bar.n)

    def say(self, line: str, error: bool = False) -> None:
        file = sys.stderr if error else sys.stdout
        if self._watched:
            tqdm.write(line, file=file)
            file.flush()
        else:
            print(line, file=file, flush=True)

    def _bar(self, n: int) -> tqdm[NoReturn]:
        if n not in self._bars:
            text = title(self._prompts[n]) if self._each or len(self._prompts) == 1 else f"{len(self._prompts)} prompts"
            # Asked here, because tqdm takes a terminal that reports 0 rows or columns at its word and draws nothing.
            columns, rows = shutil.get_terminal_size()
            self._bars[n] = tqdm(
                desc=text,
                unit="step",
                position=n,
                ncols=columns - 1,
                nrows=rows,
            )
        return self._bars[n]

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()


def title(prompt: str, width: int = 24) -> str:
    """Return the prompt on one line, cut to `width` characters."""
    line = " ".join(prompt.split())
    return line if len(line) <= width else line[: width - 1] + "…"
