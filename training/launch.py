"""Starts a command as several processes that train together, and ends them together.

torchrun would do, but for its own words: it answers Ctrl-C, and a caption that is missing, with its traceback.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from types import FrameType
from typing import IO

_TETHER = "TRAINING_TETHER"  # in a child's environment: the number of its end of the pipe
_STOPPED = 130  # the status of one that was asked to stop, and did
DESERTED = 3  # of one that lost another (training.errors.Deserted), which says more, or says nothing: it was killed
_SAID = (2, _STOPPED)  # those of one that said why in a sentence, which all say alike
_WRITING = 120.0  # seconds that a state may take to be written, after which it is the one before that stays
_GRACE = 10.0  # seconds in which the others may end by themselves, and say why, once one has failed


def launch(command: Sequence[str], count: int) -> int:
    """Run a command `count` times at once, and return the status of the one whose failure it was, else 0.

    SIGINT and SIGTERM are handed on once; if this process dies, the children are told to stop, and keep their state.
    """
    with contextlib.ExitStack() as kept:
        theirs, ours = os.pipe()
        kept.callback(os.close, ours)
        kept.callback(os.close, theirs)
        children: list[subprocess.Popen[bytes]] = []
        asked: list[int] = []

        def hand_on(number: int, frame: FrameType | None) -> None:
            if not asked:  # the next one may find them on their way out, where nobody holds it back any more
                _tell(children, number)
            asked.append(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            kept.callback(signal.signal, number, signal.signal(number, hand_on))
        kept.callback(_end, children)
        # All of them find the same mistakes. The first one says them; what another says is shown where it fails alone.
        words: list[IO[bytes] | None] = [None]
        words += [kept.enter_context(tempfile.TemporaryFile()) for _ in range(1, count)]
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
        for rank, stderr in enumerate(words):
            place = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank), _TETHER: str(theirs)}
            # Sessions of their own: a terminal's Ctrl-C comes here alone, and so once to each.
            child = subprocess.Popen(
                command, env={"OMP_NUM_THREADS": "1", **os.environ, **place}, pass_fds=(theirs,), stderr=stderr,
                start_new_session=True,
            )  # fmt: skip
            children.append(child)
            if asked:  # before this one was there
                child.send_signal(asked[0])
        failed = _first_failed(children, asked)
        if failed is None:
            return 0
        code, file = children[failed].returncode, words[failed]
        if file is not None and not (code in _SAID and code == children[0].returncode):
            file.seek(0)
            sys.stderr.write(file.read().decode(errors="replace"))
        if code < 0 and -code not in asked:  # which it could not say itself
            why = f"signal {-code} ({signal.strsignal(-code)})"
            print(
                f"error: process {failed + 1} of {count} was ended by {why}; the same command resumes", file=sys.stderr
            )
        return code if code > 0 else 128 - code if -code in asked else 1  # by a signal: less than 0


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.kill()
        child.wait()


def stop_with_parent() -> None:
    """Ask this process to stop when the one that launched it ends; without one nothing is done."""
    number = os.environ.pop(_TETHER, "")
    if number.isdecimal():
        threading.Thread(target=_watch, args=(int(number),), name="tether", daemon=True).start()


def _watch(number: int) -> None:
    try:
        while os.read(number, 1):
            pass
    except OSError:
        return
    os.kill(os.getpid(), signal.SIGTERM)


def _first_failed(children: Sequence[subprocess.Popen[bytes]], signals: Sequence[int]) -> int | None:
    """Wait for all of them; return the one whose failure it was, else None.

    Once one has failed the others have `_GRACE` seconds, and longer where it was asked to stop: one of them is writing
    the state. Who fails closes its connections before it has ended, so one that lost it may end first.
    """
    ended = threading.Condition()
    order: list[int] = []

    def wait(rank: int) -> None:
        children[rank].wait()
        with ended:
            order.append(rank)
            ended.notify()

    for rank in range(len(children)):
        threading.Thread(target=wait, args=(rank,), daemon=True).start()

    def failed() -> int | None:
        codes = {rank: children[rank].returncode for rank in order if children[rank].returncode}
        after = {_STOPPED: 1, **{-number: 2 for number in signals}, DESERTED: 3}  # all other failures
        return min(codes, key=lambda rank: after.get(codes[rank], 0), default=None)

    with ended:
        ended.wait_for(lambda: failed() is not None or len(order) == len(children))
        rank = failed()
        code = None if rank is None else children[rank].returncode
        patience = None if code is None else _WRITING if code == _STOPPED or -code in signals else _GRACE
        if not ended.wait_for(lambda: len(order) == len(children), patience):
            _tell(children, signal.SIGTERM)
            if not ended.wait_for(lambda: len(order) == len(children), _GRACE):
                _tell(children, signal.SIGKILL)  # one that waits for another within gloo hears nothing
        return failed()


def _tell(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        child.send_signal(number)  # nothing where it has ended


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
