"""The id of a request that is traced: the same text everywhere, and it knows its trace.

An id goes wherever its request goes, also into other threads and into every line of the log. So what is logged under it
can name the trace without anybody handing that on. Nothing here needs OpenTelemetry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.tracing.trace import Trace


class TracedId(str):
    """Holds a request's id, and its trace."""

    trace: Trace

    @property
    def trace_id(self) -> str:
        """Return the trace's id, 32 hexadecimal digits; "" where the SDK is switched off."""
        return self.trace.id


def trace_of(request_id: str) -> Trace | None:
    """Return the trace of a request; None where it has none."""
    return request_id.trace if isinstance(request_id, TracedId) else None


__all__ = ["TracedId", "trace_of"]
