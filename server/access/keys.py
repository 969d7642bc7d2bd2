"""The keys of a file, read anew when it changes, and the search for the one whose token a caller has."""

from __future__ import annotations

import asyncio
import functools
import hmac
from dataclasses import dataclass
from pathlib import Path

from server.access.key import Key, digest_of
from server.access.key_file import read_keys
from server.access.watched import Watched

_NOBODYS = "0" * 64  # a digest of no token that anybody knows


@dataclass(frozen=True)
class _Index:
    """Holds the keys of a file, by digest and by what their callers are called."""

    by_digest: dict[str, Key]
    by_caller: dict[str, Key]


class Keys:
    """Holds the keys of a file, as it was when it was read last. Errors: KeyFileError, of the constructor alone."""

    def __init__(self, path: Path) -> None:
        self._watched = Watched([path], functools.partial(_read_index, path), "keys")
        self._reading: asyncio.Task[_Index] | None = None

    @property
    def stale(self) -> bool:
        """Return whether the file has changed and could not be read, so that a key that it revokes still counts."""
        return self._watched.stale

    async def fresh(self) -> None:
        """Have what the file says by now count.

        One that has changed is read in a thread, once for all who wait for it: 8,000 keys take 0.4 s.
        """
        if self._reading is None and self._watched.changed:
            self._reading = reading = asyncio.create_task(asyncio.to_thread(self._watched.current))
            reading.add_done_callback(self._read)
        if self._reading is not None:
            await asyncio.shield(self._reading)

    def _read(self, reading: asyncio.Task[_Index]) -> None:
        self._reading = None

    def of(self, token: str) -> Key | None:
        """Return the key of a token, whatever it is worth; None where there is none.

        Its digest is compared in constant time, and so is that of a token that is nobody's: how long that takes tells
        nothing of any digest. How long the search takes follows from hashes that are seeded anew in each process.
        """
        digest = digest_of(token) or ""
        key = self._watched.said.by_digest.get(digest)
        same = hmac.compare_digest(_NOBODYS if key is None else key.digest, digest)
        return key if same else None

    def called(self, caller: str) -> Key | None:
        """Return the key that a caller is called after (Key.caller); None where there is none any more."""
        return self._watched.said.by_caller.get(caller)


def _read_index(path: Path) -> _Index:
    keys = read_keys(path)
    return _Index({key.digest: key for key in keys}, {key.caller: key for key in keys})


__all__ = ["Keys"]
