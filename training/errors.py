"""What goes wrong in training through somebody's input, or through the machine, in words."""

from __future__ import annotations

from pipeline.errors import LatentdError


class TrainingError(LatentdError):
    """Carries a sentence that names the file or the field, the value and the limit."""

    code = "INVALID_ARGUMENT"


class Deserted(Exception):  # noqa: N818 (what went wrong did so elsewhere)
    """Ends a process that lost another one, which says why or was killed."""
