"""Compiled engines on disk, under $LATENTD_CACHE, each with the digest of its own bytes.

An engine is machine code: what does not match its digest is compiled again, never run. A cache that cannot be
written costs time at the next start and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

_DIGEST = hashlib.sha256().digest_size

log = logging.getLogger("latentd.cache")


def cache_folder() -> Path:
    """$LATENTD_CACHE, else $XDG_CACHE_HOME/latentd, else ~/.cache/latentd; absolute."""
    if own := os.environ.get("LATENTD_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "latentd"


def key(**parts: Any) -> str:
    """A name for what `parts` (JSON values) determine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def load(name: str) -> bytes | None:
    """The bytes stored under `name`, or None where there are none or they are damaged."""
    path = cache_folder() / "engines" / name
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(memoryview(data)[_DIGEST:]).digest() != data[:_DIGEST]:
        log.warning("%s is damaged; building it again", path)
        return None
    return data[_DIGEST:]


def store(name: str, data: bytes) -> None:
    """Whole or not at all: a temporary file, synced and renamed."""
    path = cache_folder() / "engines" / name
    temporary = path.with_name(f".new-{name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(hashlib.sha256(data).digest())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        log.warning("engine not cached, the next start compiles it again: %s", error)
    finally:  # renamed away, unless something failed or interrupted
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
