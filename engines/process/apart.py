"""Runs a job in a process of its own, so that a compiler that crashes takes nothing with it.

The job comes as JSON on standard input; what it says, and its result, go as lines of JSON to a pipe of their own,
because compilers write what they like to standard output.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from engines.process.tether import end_with_parent, tether
from pipeline.errors import LatentdError

_ROOT = Path(__file__).parents[2]


class ApartError(LatentdError):
    """The job failed, in a sentence of its own or by taking its process down."""

    code = "FAILED_PRECONDITION"

    def __init__(self, sentence: str, final: bool = False) -> None:
        super().__init__(sentence)
        self.final = final  # would fail the next job too: a full disk


def run(
    function: str,
    job: dict[str, Any],
    say: Callable[[str], None],
    *,
    tick: Callable[[], None] = lambda: None,
    seconds: float = 10.0,
    keep: Sequence[int] = (),
) -> Any:
    """Return the JSON result of `function` ("module:name"), called with `job` (JSON values) and a `say` for lines.

    `tick` is called every so many `seconds` of silence; the descriptors `keep` stay open in the child. Errors:
    ApartError. The child does not outlive this process, whatever ends it.
    """
    with contextlib.ExitStack() as stack:
        try:
            process, reads, log = _begun(stack, function, keep)
        except OSError as error:
            raise ApartError(f"no process of its own can be begun for it ({error.strerror or error})") from error
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job).encode())
            process.stdin.close()
        last: dict[str, Any] = {}
        for message in _messages(reads, tick, seconds):
            if "say" in message:
                say(message["say"])
            else:
                last = message
        status = process.wait()
        if "result" in last and status == 0:
            return last["result"]
        if "error" in last:
            raise ApartError(last["error"], last["final"])
        raise ApartError(f"{_ended(status)}{_last_words(log)}")


def _begun(
    stack: contextlib.ExitStack, function: str, keep: Sequence[int]
) -> tuple[subprocess.Popen[bytes], int, IO[bytes]]:
    """Begin the child; return it, where to read its messages, and its log. `stack` ends it first of all."""
    log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack is one)
    end, environment = stack.enter_context(tether())
    reads, writes = os.pipe()
    stack.callback(os.close, reads)
    try:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "engines.process.apart", function, str(writes)],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(writes, end, *keep),
        )
    finally:
        os.close(writes)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process, reads, log


def _messages(number: int, tick: Callable[[], None], seconds: float) -> Iterator[dict[str, Any]]:
    rest = b""
    while True:
        if not select.select([number], [], [], seconds)[0]:
            tick()
            continue
        piece = os.read(number, 1 << 16)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        yield from map(json.loads, lines)


def _ended(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status}"
    name = signal.Signals(-status).name
    return f"its process was ended by {name}" + (", as Linux does when memory runs out" if name == "SIGKILL" else "")


def _last_words(log: IO[bytes]) -> str:
    """Return the last line that the process wrote, for what it is worth."""
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 4096))
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return f"; its last words: {lines[-1].strip()[:200]}" if lines else ""


def main() -> int:
    """Run one job in the child process."""
    function, number = sys.argv[1], int(sys.argv[2])
    end_with_parent()
    _leave_first()
    job = json.loads(sys.stdin.buffer.read())

    def tell(**message: Any) -> None:
        os.write(number, (json.dumps(message) + "\n").encode())

    from engines.cache.disk import DiskError

    module, _, name = function.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(job, lambda line: tell(say=line))
    except LatentdError as error:
        tell(error=str(error), final=isinstance(error, DiskError))
        return 1
    tell(result=result)
    return 0


def _leave_first() -> None:
    """Ignore signals that are meant for the parent, and be the first that Linux kills where memory runs out.

    A terminal's Ctrl-C, or its end, reaches every process of the group; this one ends when its parent has (tether.py).
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # its own, raised: nobody needs a privilege for that


if __name__ == "__main__":
    sys.exit(main())
