"""How an extra is installed: the command for this Python, as an error that misses a package hands it on.

It names the interpreter that runs: `pip` alone is often another Python's, and then a user installs it and is told the
same again. In a clone the extra is the clone's; elsewhere it comes with the wheel that latentd came in.
"""

from __future__ import annotations

import os
import shlex
import sys
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def install(*extras: str) -> str:
    """Return the command that installs these extras, to be pasted where this program was started."""
    python = _from_here(Path(sys.executable))
    if (_ROOT / "pyproject.toml").is_file():
        return f"{shlex.quote(python)} -m pip install -e {_quoted(_from_here(_ROOT), extras)}"
    return f"{shlex.quote(python)} -m pip install {_quoted(f'latentd-{_version()}-py3-none-any.whl', extras)}"


def _quoted(what: str, extras: tuple[str, ...]) -> str:
    return f"'{what}[{','.join(extras)}]'"


def _version() -> str:
    try:
        return metadata.version("latentd")
    except metadata.PackageNotFoundError:
        return "VERSION"


def _from_here(path: Path) -> str:
    """Return the path as it is written from the current folder, where it lies in it."""
    try:
        here = Path(os.getcwd())
    except OSError:  # the folder is gone
        return str(path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
