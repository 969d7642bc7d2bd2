"""Whether requests are traced, as the settings say. OpenTelemetry is not imported unless they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.extras import install
from server.metrics import Metrics
from server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from server.tracing.tracing import Tracing


def tracing_of(settings: Settings, metrics: Metrics) -> Tracing | None:
    """Return what traces requests; None where they are not.

    Errors: SettingsError where the extra is missing, and where a variable of the standard's cannot be read.
    """
    if settings.otlp is None:
        return None
    try:
        from server.tracing.tracing import Tracing
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"otlp is {settings.otlp!r}, and what sends traces is not installed ({error.name}): {install('traces')}"
        ) from None
    try:
        return Tracing(settings.otlp, settings.trace_ratio, metrics, prompts=settings.trace_prompts)
    except ValueError as error:
        raise SettingsError(
            f"otlp is {settings.otlp!r}, and a variable OTEL_.. of the environment cannot be used: {error}"
        ) from None


__all__ = ["tracing_of"]
