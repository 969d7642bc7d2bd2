"""Is it here? Modules of ours that may not be written yet, and wheels that a machine may lack."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from benchmarks.gpu.frame.report import AbsentError

OURS = ("kernels", "engines", "server", "model", "pipeline", "latentd")


def needed(module: str, *names: str) -> Any:
    """Import the named attribute (or a tuple of several, or the module).

    Raises AbsentError, which is wrong only where a file of ours exists and cannot be imported or lacks the name.
    """
    top = module.partition(".")[0]
    try:
        exists = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        exists = False
    if not exists:
        raise AbsentError(f"{module} is not {'written' if top in OURS else 'installed'}")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as missing:
        # A wheel that this machine lacks, named; one of our own modules missing inside is our fault.
        name = (missing.name or "?").partition(".")[0]
        raise AbsentError(f"{module} needs {missing.name}, which is not here", wrong=name in OURS) from missing
    values = []
    for name in names:
        if not hasattr(imported, name):
            raise AbsentError(f"{module} has no {name}", wrong=True)
        values.append(getattr(imported, name))
    return imported if not names else values[0] if len(values) == 1 else tuple(values)
