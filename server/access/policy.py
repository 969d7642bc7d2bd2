"""The policy that every door asks, for each call: who is it, and may it come in?"""

from __future__ import annotations

import base64
import binascii
import logging
import time
from collections.abc import Callable, Sequence

from server.access.key import Key
from server.access.keys import Keys
from server.access.rate import Bucket
from server.errors import Forbidden, OverRate, Unauthenticated

log = logging.getLogger("latentd.access")

_HOW = "authorization: Bearer KEY"
_REFUSED = "the key is none that counts here: it is unknown, has expired, or was revoked"  # which, the log knows


class Policy:
    """Says who calls and what that caller may do. Without `keys` everybody is let in, by address.

    `refused` counts refusals by their reason: "key" or "rate". `clock`: monotonic seconds.
    """

    def __init__(
        self,
        keys: Keys | None = None,
        refused: Callable[[str], object] = lambda why: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.keys = keys
        self._refused, self._clock = refused, clock
        self._buckets: dict[str, Bucket] = {}
        self._logged: set[tuple[str, str]] = set()  # of whose end the log has a line

    async def caller(self, credentials: Sequence[str], address: str) -> str:
        """Let a request in and name its caller, by key or else by `address` (server/caller.py).

        What the file of keys says by now is what counts. `credentials`: the values of the request's `authorization`,
        each as it was sent.
        Errors: Unauthenticated; OverRate, where the key asks more often than it may.
        """
        if self.keys is None:
            return address
        await self.keys.fresh()
        try:
            key = self._key(self.keys, credentials)
        except Unauthenticated:
            self._refused("key")
            raise
        if key.rate is not None:
            wait = self._buckets.setdefault(key.name, Bucket(self._clock())).take(key.rate, self._clock())
            if wait:
                self._refused("rate")
                raise OverRate(f"{key.caller} asks more often than {key.rate:g} times a minute", wait)
        return key.caller

    def key_of(self, caller: str) -> Key | None:
        """Return the key that a caller came with; None where it came without, or the key is not there any more."""
        return None if self.keys is None else self.keys.called(caller)

    def calls_of(self, caller: str, most: int) -> int:
        """Return how many calls of a caller may be open at once; `most` where its key does not say."""
        key = self.key_of(caller)
        return most if key is None or key.calls is None else min(most, key.calls)

    def check_admin(self, caller: str) -> None:
        """Errors: Forbidden for who may not change what is served: whose key is no admin's, and all without a key."""
        key = self.key_of(caller)
        if key is None or not key.admin:
            raise Forbidden(f"{caller} may not do this: it takes a key with admin: true")

    def _key(self, keys: Keys, credentials: Sequence[str]) -> Key:
        if not credentials:
            raise Unauthenticated(f"this server takes calls with a key alone; send {_HOW}")
        tokens = {token_of(each) for each in credentials}
        key = keys.of(tokens.pop() or "") if len(tokens) == 1 else None  # of two, nobody could say whose call it is
        if key is None:
            raise Unauthenticated(_REFUSED)
        if key.revoked or key.lapsed():
            end = (key.name, "was revoked" if key.revoked else f"has expired on {key.expires}")
            if end not in self._logged:
                self._logged.add(end)
                log.warning("a call came with key %s, which %s; more of them are not told", *end)
            raise Unauthenticated(_REFUSED)
        return key


def token_of(credential: str) -> str | None:
    """Return the token of an `authorization`: Bearer's, or Basic's password, with any user; None where it has none."""
    scheme, _, rest = credential.strip().partition(" ")
    match scheme.lower():
        case "bearer":
            return rest.strip()
        case "basic":
            try:
                return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError, ValueError):
                return None
    return None


__all__ = ["Policy", "token_of"]
