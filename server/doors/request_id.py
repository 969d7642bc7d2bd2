"""A request's id: in the log, and in what the client gets back, whatever the door."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable

ID_KEY = "x-request-id"  # a header of HTTP, metadata of gRPC


def request_id(sent: Iterable[str]) -> str:
    """Return the id that the client sent, if it is one and the same wherever it stands; else a new one.

    Where two were sent that differ, nobody could say which one the log has.
    """
    ids = set(sent)
    chosen = ids.pop() if len(ids) == 1 else ""
    return chosen if re.fullmatch(r"[\w.:-]{1,64}", chosen, re.ASCII) else secrets.token_hex(6)


__all__ = ["ID_KEY", "request_id"]
