"""An ASGI app behind the policy, for a port whose answers are text: the metrics."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

from server.access.policy import Policy
from server.errors import Busy, Unauthenticated

_App = Callable[..., Awaitable[None]]


def keyed(app: _App, policy: Policy) -> _App:
    """Return `app`, which answers those whom `policy` lets in; others have 401 or 429 and a sentence."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        try:
            await policy.caller(sent, str((scope.get("client") or ("local",))[0]))
        except Unauthenticated as error:
            await _refuse(send, 401, error, (b"www-authenticate", b'Bearer realm="latentd"'))
        except Busy as error:
            await _refuse(send, 429, error, (b"retry-after", b"%d" % math.ceil(error.retry_after)))
        else:
            await app(scope, receive, send)

    return answer


async def _refuse(send: Any, status: int, error: Exception, header: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), header]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{error}\n".encode()})


__all__ = ["keyed"]
