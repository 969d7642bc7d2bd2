"""A key: who calls, and what that caller may do. Only the digest of its token is known here."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from latentd.variables import meant
from pipeline.errors import LatentdError

_CALLER = "key:"
_PREFIX = "latentd_"
_TOKEN = re.compile(_PREFIX + r"[A-Za-z0-9_-]{43}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")


class KeyFileError(LatentdError):
    """A file of keys cannot be used; the message names the file, the key and the field, and never a value of it."""

    code = "INVALID_ARGUMENT"


@dataclass(frozen=True)
class Key:
    """Holds what a file of keys says of one.

    `digest` is the SHA-256 of its token, in hex. A token is 256 random bits, so there is nothing to guess that salt or
    a slow hash would make dearer; those are for words that people choose, and a slow one is work that any stranger
    could have the server do.
    """

    name: str
    digest: str
    priority: int = 0  # the highest it may ask for
    weight: float = 1.0  # its part of the device beside another's, inside a priority
    calls: int | None = None  # open at once; None: as many as any caller
    rate: float | None = None  # requests a minute; as many may come at once after a minute without any
    admin: bool = False  # may change what is served
    expires: date | None = None  # the last day (UTC) on which it counts
    revoked: bool = False

    @property
    def caller(self) -> str:
        """Return how callers are called who bring this key."""
        return f"{_CALLER}{self.name}"

    def lapsed(self, now: datetime | None = None) -> bool:
        """Return whether its last day is over."""
        return self.expires is not None and (now or datetime.now(UTC)).date() > self.expires


def by_key(caller: str) -> bool:
    """Return whether a caller is called after a key, which need not be there any more; an address looks otherwise."""
    return caller.startswith(_CALLER)


def new_token() -> str:
    """Draw a token: 256 bits of the system's randomness, with a prefix by which scanners for secrets can know it."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str | None:
    """Return a token's SHA-256 in hex; None where `new_token` draws no such: a word that somebody chose is no key."""
    return hashlib.sha256(token.encode()).hexdigest() if _TOKEN.fullmatch(token) else None


def _whole(least: int, most: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(least: float, most: float) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most  # which no NaN is
    )


def _date(value: object) -> bool:
    return isinstance(value, date) and not isinstance(value, datetime)


# Field: whether a value is one, and what it takes.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (
        lambda value: isinstance(value, str) and _NAME.fullmatch(value) is not None,
        "1 to 64 small letters, digits, dots, dashes and underscores",
    ),
    "digest": (
        lambda value: isinstance(value, str) and _DIGEST.fullmatch(value) is not None,
        "sha256: and 64 hex digits, as `latentd keys new` prints; a token itself has no place here",
    ),
    "priority": (_whole(-(2**31), 2**31 - 1), "a whole number"),
    "weight": (_number(0.01, 100), "a number from 0.01 to 100"),
    "calls": (_whole(1, 1_000_000), "a whole number from 1 to 1000000"),
    "rate": (_number(0.01, 1_000_000), "requests a minute, a number from 0.01 to 1000000"),
    "admin": (lambda value: isinstance(value, bool), "true or false"),
    "expires": (_date, "a date as 2027-01-31"),
    "revoked": (lambda value: isinstance(value, bool), "true or false"),
}
assert list(_FIELDS) == [each.name for each in dataclasses.fields(Key)]


def read_key(entry: object, where: str) -> Key:
    """Read one entry of a file of keys. `where` says which, in words. Errors: KeyFileError."""
    if not isinstance(entry, Mapping):
        raise KeyFileError(f"{where} is no mapping; it takes name, digest and what the key may do")
    name = entry.get("name")
    if _FIELDS["name"][0](name):
        where = f"{where} ({name})"
    if unknown := sorted(str(field)[:64] for field in entry if field not in _FIELDS):
        near = meant(unknown[0], list(_FIELDS))
        raise KeyFileError(f"{where} has an unknown field {unknown[0]!r}{near}; there are: {', '.join(_FIELDS)}")
    for field in ("name", "digest"):
        if entry.get(field) is None:
            raise KeyFileError(f"{where} lacks {field}; it takes {_FIELDS[field][1]}")
    values = {field: value for field, value in entry.items() if value is not None}
    for field, value in values.items():
        good, takes = _FIELDS[field]
        if not good(value):
            raise KeyFileError(f"{where}: {field} is something else than what it takes: {takes}")
    return Key(**{**values, "digest": values["digest"].removeprefix("sha256:")})


__all__ = ["Key", "KeyFileError", "by_key", "digest_of", "new_token", "read_key"]
