"""Logs on stderr, a line an event, each of a request with the request's id."""

from __future__ import annotations

import json
import logging
import sys


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        return "".join([line, *(f" {name}={value}" for name, value in _ids(record).items())])


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= _ids(record)
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def _ids(record: logging.LogRecord) -> dict[str, str]:
    """Return the ids that a line carries: its request's, and its trace's where it has one."""
    request = getattr(record, "request", None)
    trace = getattr(request, "trace_id", None)
    return ({"request": request} if request else {}) | ({"trace_id": trace} if trace else {})


def start_logging(format: str) -> None:
    """Log to stderr from now on, in `format`: "text" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if format == "json" else _Text())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
