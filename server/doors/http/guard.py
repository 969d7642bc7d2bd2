"""The guard stands before every HTTP answer: whom a browser may ask for, from which page, and what it may do with it.

A server on this machine is reached by every page that a browser has open. What such a page may not do is asked here,
once, in ASGI alone: no room behind has to remember it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from server.access.policy import Policy
from server.address import is_loopback
from server.caller import caller_of
from server.doors.http.errors import HttpError, Refusal, door_of
from server.doors.request_id import ID_KEY, request_id

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
_OPEN = ("/healthz", "/readyz")  # probes call them by whatever name
_KEYLESS, _FILES = ("/", *_OPEN), "/static/"  # the page's own files are no secret, and ask for the key


class Guard:
    """Lets requests through to an app, and adds to its answers. `idle` is set while there is none.

    `host`: what it listens on. `allowed`: names that a user has given it. Both, loopback's names and any address may be
    asked for. An address needs no check: what makes another site's page reach us under a name of its own (DNS
    rebinding) is a name. `admitted` counts a caller's call during a block, or raises. `policy` says whose a call is.
    """

    def __init__(
        self,
        app: App,
        host: str = "127.0.0.1",
        allowed: Iterable[str] = (),
        admitted: Callable[[str], contextlib.AbstractContextManager[None]] = lambda caller: contextlib.nullcontext(),
        policy: Policy | None = None,
    ) -> None:
        self._app, self._admitted, self._policy = app, admitted, policy or Policy()
        self._allowed = {name.lower() for name in allowed}
        self._hosts = {"localhost", host.lower(), *self._allowed}
        if not is_loopback(host):
            self._hosts.add(socket.gethostname().lower())
        self._live = 0
        self.idle = asyncio.Event()
        self.idle.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"no app for {scope['type']}")
        id = request_id(_values(scope, ID_KEY))
        caller = caller_of(_peer(scope))
        scope.setdefault("state", {}).update(request_id=id, caller=caller, address=caller)
        begun = False

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", ()), *_HEADERS, (ID_KEY.encode(), id.encode())]
            await send(message)

        self._live += 1
        self.idle.clear()
        try:
            self._check(scope)
            if scope["path"] in _OPEN:  # answered beside a full house
                await self._app(scope, receive, answer)
            else:
                if scope["path"] not in _KEYLESS and not scope["path"].startswith(_FILES):
                    caller = await self._policy.caller(_values(scope, "authorization"), caller)
                    scope["state"]["caller"] = caller
                with self._admitted(caller):
                    await self._app(scope, receive, answer)
        except Exception as error:
            refusal = Refusal.of(error, id)
            if not begun:
                door = door_of(scope["path"])
                headers = [*refusal.headers(), *refusal.challenge(door)]
                await answer({"type": "http.response.start", "status": refusal.status, "headers": headers})
                body = refusal.content(door, id)
                await answer({"type": "http.response.body", "body": body})
            else:
                raise
        finally:
            self._live -= 1
            if not self._live:
                self.idle.set()

    def _check(self, scope: Scope) -> None:
        """Errors: HttpError for a name that is not the server's, and for a page that is not."""
        hosts, origins = _values(scope, "host"), _values(scope, "origin")
        if scope["path"] not in _OPEN and any(not self.knows(_name(host)) for host in hosts):
            raise HttpError(403, f"host is {hosts[0][:64]!r}, which is no name of this server; --allow-host adds one")
        for origin in origins:
            if not self._same(origin, hosts):
                raise HttpError(
                    403,
                    f"origin is {origin[:64]!r}: another site's page may not use this server (--allow-host)",
                )
        # A link on another site may lead here; nothing else of it may.
        elsewhere = "cross-site" in _values(scope, "sec-fetch-site") and not origins
        if elsewhere and not (scope["method"] in ("GET", "HEAD") and "navigate" in _values(scope, "sec-fetch-mode")):
            raise HttpError(403, "another site's page may not use this server")

    def knows(self, name: str) -> bool:
        """Return whether the server goes by a host's name, in small letters and without its port."""
        if name in self._hosts or name.endswith(".localhost"):
            return True
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return False

    def _same(self, origin: str, hosts: list[str]) -> bool:
        """Return whether an origin is the server's: the host that was asked for, or a name that a user has allowed."""
        with contextlib.suppress(ValueError):
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https"):
                return False
            return parts.netloc.lower() in {host.lower() for host in hosts} or parts.hostname in self._allowed
        return False


def _name(host: str) -> str:
    """Return a Host header's name, in small letters; the port and an IPv6 address's brackets are left out."""
    match = re.fullmatch(r"\[([^\]]*)\](?::\d*)?|([^:]*)(?::\d*)?", host.strip())
    return (match[1] or match[2] or "").lower().rstrip(".") if match else host


def _peer(scope: Scope) -> str:
    """Write the other end of a connection as gRPC does. What a proxy says of it is anybody's to say, and not read."""
    if not scope.get("client"):
        return "unix:"
    host, port = scope["client"]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _values(scope: Scope, key: str) -> list[str]:
    wanted = key.encode()
    return [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]


__all__ = ["App", "Guard", "Receive", "Scope", "Send"]
