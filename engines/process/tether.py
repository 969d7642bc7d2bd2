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
    """Yield the child's end, which it must inherit, and its environment; this process holds the other end meanwhile."""
    theirs, ours = os.pipe()  # neither is inherited unless pass_fds names it
    try:
        yield theirs, {**os.environ, _NAME: str(theirs)}
    finally:
        os.close(theirs)
        os.close(ours)


def end_with_parent(environment: MutableMapping[str, str] = os.environ) -> None:
    """End this process when its parent ends: a child calls it first of all. Without a tether it does nothing."""
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
