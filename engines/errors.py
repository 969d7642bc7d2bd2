"""What a backend, and what builds for it, can fail with."""

from __future__ import annotations

from pipeline.errors import LatentdError


class BackendError(LatentdError):
    """A backend that cannot be had or built here; the message says what to install or run."""

    code = "FAILED_PRECONDITION"


class NoEngine(BackendError):  # noqa: N818 (what is the matter, and what to run, for whoever asked)
    """An engine that must be built ahead is not there, or damaged; the message says which, and the command."""


class OutOfMemory(BackendError):  # noqa: N818 (the name says what is the matter)
    """The device lacks memory for a request; the device is intact, and so is all that it holds."""

    code = "RESOURCE_EXHAUSTED"


class DeviceError(LatentdError):
    """The device failed while it served. Live requests fail and the process ends: its supervisor restarts it."""

    code = "UNAVAILABLE"
