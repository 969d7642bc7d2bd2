"""A child that ends with its parent, however that ends: each holds one end of a pipe that nobody writes to.

The kernel closes the parent's end when the parent dies, kill -9 included, and the child reads the end of the file.
Unlike Linux's prctl(PR_SET_PDEATHSIG) it asks for no thread to stay, and for no code between fork and exec.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, MutableMapping

_NAME = "LATENTD_TETHER"  # in the child's environment: the number of its end


@contextlib.contextmanager
def tether() -> Iterator[tuple[int, dict[str, str]]]:
    """The child's end, which it must inherit, and its environment. Whoever starts one holds the other end inside."""
    theirs, ours = os.pipe()  # neither is inherited unless it is asked for
    try:
        yield theirs, {**os.environ, _NAME: str(theirs)}
    finally:
        os.close(theirs)
        os.close(ours)


def end_with_parent(environment: MutableMapping[str, str] = os.environ) -> None:
    """In the child, first of all: from now on this process ends when its parent does. Without a tether: nothing."""
    number = environment.pop(_NAME, "")  # not for children of ours
    if number.isdecimal():
        threading.Thread(target=_wait, args=(int(number),), name="tether", daemon=True).start()


def _wait(number: int) -> None:
    try:
        while os.read(number, 1):
            pass
    except OSError:  # a variable left by somebody else, and no descriptor of ours
        return
    os._exit(1)
