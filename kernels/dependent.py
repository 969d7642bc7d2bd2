"""Programmatic dependent launch: a kernel is set up while the one before it in its stream still runs.

Such a launch (sm_90 and later) waits for nothing by itself. `griddepcontrol.wait` does: until the kernel before has
ended and all that it wrote is visible. Hence one rule in every kernel, `await_previous`: its threads wait before they
touch memory, to read or to write, and only then let the next kernel be set up. Whoever is past its wait therefore knows
that all work before it has ended: its predecessor, and before that whatever the predecessor waited for.

The attribute and the wait go together: `kernels.launch.launch` sets both or neither. `fault` reads from PTX whether a
compiled kernel keeps the rule. docs/kernels.md says what overlaps what. Off unless asked for: never run on a GPU.
"""

# ruff: noqa: N803 (a kernel's constants are in capitals)
from __future__ import annotations

import contextlib
import contextvars
import re
from collections.abc import Iterator

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LEAST_ARCH = 90
CONSTANT = "DEPENDENT"  # the parameter of every kernel that says how it is launched; the last one
_asked: contextvars.ContextVar[bool] = contextvars.ContextVar("dependent launches", default=False)


@triton.jit
def await_previous(DEPENDENT: tl.constexpr) -> None:
    """The first statement of a kernel: behind its index arithmetic, ptxas would move the wait here all the same.

    The next kernel's programs are set up once every program of this one has come here. They take the room that it
    leaves, then, and never a place that one of its own programs still waits for; so nothing is gained by a later one.
    """
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()


@contextlib.contextmanager
def dependent_launches() -> Iterator[None]:
    """Launches inside, of this thread, are dependent ones where they can be; also a decorator of what launches."""
    before = _asked.set(True)
    try:
        yield
    finally:
        _asked.reset(before)


def asked() -> bool:
    return _asked.get()


# What may stand before the wait: arithmetic, and reading the launch's own arguments. Not a branch, not a label.
_HARMLESS = re.compile(
    r"(ld\.param|mov|cvta?|add|sub|mul|mad|div|rem|shl|shr|and|or|xor|not|neg|abs|min|max|setp|selp|bfe|lop3|prmt)\b"
)
_WAIT, _NEXT = "griddepcontrol.wait", "griddepcontrol.launch_dependents"


def fault(ptx: str, *, dependent: bool) -> str:
    """What breaks the rule in a compiled kernel, one sentence; empty if nothing does.

    The wait has to stand in the straight code that the entry begins with, so that there is no way around it, and
    nothing before it may touch memory.
    """
    counts, wanted = (ptx.count(_WAIT), ptx.count(_NEXT)), int(dependent)
    if counts != (wanted, wanted):
        return f"waits {counts[0]} times for the kernel before and lets the next begin {counts[1]} times, not {wanted}"
    if not dependent:
        return ""
    before = next(one for one in _statements(ptx) if not _HARMLESS.match(one))
    return "" if before == _WAIT else f"does not wait for the kernel before, but comes to: {before}"


def _statements(ptx: str) -> Iterator[str]:
    """Of the one entry, in order, with their predicates, and labels; without debuggers' labels and directives."""
    for line in ptx.partition(".entry ")[2].partition("{")[2].splitlines():
        statement = line.partition("//")[0].strip().rstrip(";").strip()
        if statement and not re.match(r"\.|\$L__(tmp|func_begin)\d+:", statement):
            yield statement
