"""Compiled engines on disk: each a folder with the engine's bytes and a sealed manifest that says where they come from.

What a builder writes beside its engine, such as TensorRT's description of the layers, is vouched for in the same way.

An engine is machine code: its bytes are hashed in the pass that reads them, and what does not match its manifest is
never run. A folder is named by the key of all that its engine depends on, so a manifest in the wrong place is found.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.cache import disk, entries, eviction, lock
from engines.cache.sealed import Damaged, read_sealed, sealed
from engines.errors import NoEngine
from pipeline.errors import CheckpointError
from pipeline.files import regular_size

FORMAT = 1
ENGINE, MANIFEST = "engine", "manifest.json"
INSPECTION = "inspection.json"  # the one file that a builder may write beside the engine
_PIECE = 1 << 22  # bytes read and hashed at once, 4 MiB: what a core's caches hold


@dataclass(frozen=True)
class Engine:
    folder: Path
    manifest: dict[str, Any]
    data: bytearray  # what was hashed, never read a second time


def place(identity: dict[str, Any]) -> Path:
    return entries.cache_folder() / "engines" / entries.key(**identity)


def load(identity: dict[str, Any]) -> Engine | None:
    """Return the engine that `identity` (JSON values) determines, or None; it is in use until this process ends.

    Errors: Damaged, naming the file and the reason; what to do about it is the caller's to say.
    """
    return _checked(identity, keep_data=True)


def require(identity: dict[str, Any], command: str) -> Engine:
    """Return an engine that cannot be built where it is served. Errors: NoEngine with the `command` that builds it."""
    try:
        engine = load(identity)
    except Damaged as error:
        raise NoEngine(f"{error}; run `{command}` to build it again") from None
    if engine is None:
        title = " ".join(str(identity.get(part)) for part in ("network", "backend", "target"))
        raise NoEngine(f"there is no engine {title} at {place(identity)}; run `{command}` to build it")
    return engine


def verify(identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of a whole engine, or None; it does as `load`, without its bytes in memory."""
    engine = _checked(identity, keep_data=False)
    return engine and engine.manifest


def _checked(identity: dict[str, Any], keep_data: bool) -> Engine | None:
    folder = place(identity)
    if not lock.use(folder):
        return None
    try:
        manifest = _manifest(folder)
        data = _read(folder / ENGINE, manifest["engine"], keep_data)
        if vouched := manifest.get("inspection"):
            _read(folder / INSPECTION, vouched, keep_data=False)
    except FileNotFoundError as error:
        raise Damaged(f"{error.args[0]} is missing") from None
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{folder / MANIFEST} is damaged ({error!r:.100})") from None
    eviction.touch(folder)
    return Engine(folder, manifest, data)


def keep(
    identity: dict[str, Any], about: dict[str, Any], write: Callable[[entries.Fresh, Path], dict[str, Any]]
) -> dict[str, Any]:
    """Make an engine, keep it, and return its manifest.

    `write` makes the engine's file at the path (and may write INSPECTION beside it, synced) and returns the builder's
    facts; `about` goes into the manifest beside them. Whoever calls holds lock.alone(place(identity)).
    Errors: DiskError, LimitError, and those of `write`.
    """
    folder = place(identity)
    begin = time.monotonic()
    with entries.fresh(folder) as new:
        facts = write(new, new.folder / ENGINE)
        seconds = time.monotonic() - begin
        disk.sync(new.folder / ENGINE)
        beside = {"inspection": _vouch(new.folder / INSPECTION)} if (new.folder / INSPECTION).is_file() else {}
        manifest = {
            "format": FORMAT,
            "identity": identity,
            **about,
            "facts": facts,
            "seconds": round(seconds, 3),
            "made": _now(),
            "engine": _vouch(new.folder / ENGINE),
            **beside,
            "errors": {},
        }
        disk.write(new.folder / MANIFEST, sealed(manifest))
        new.keep()
    eviction.evict()
    return manifest


def annotate(identity: dict[str, Any], errors: dict[str, float], device: str) -> None:
    """Write errors that were measured on `device` into an engine's manifest. Errors: Damaged; DiskError."""
    folder = place(identity)
    with lock.alone(folder, lambda _: None):
        try:
            manifest = _manifest(folder)
        except FileNotFoundError:
            return  # evicted, or never cached
        manifest["errors"] = {**manifest["errors"], **errors}
        manifest["checked"] = {"device": device, "at": _now()}
        disk.write_whole(folder / MANIFEST, sealed(manifest))


def manifests() -> list[tuple[Path, dict[str, Any]]]:
    """Return every engine's folder and manifest, damaged ones left out."""
    whole = []
    for folder in entries.entries(entries.cache_folder() / "engines"):
        try:
            whole.append((folder, _manifest(folder)))
        except (Damaged, FileNotFoundError):
            continue
    return whole


def _manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an engine's folder. Errors: Damaged; FileNotFoundError."""
    path = folder / MANIFEST
    manifest = read_sealed(path)
    if manifest.get("format") != FORMAT:
        raise Damaged(f"{path} has format {manifest.get('format')!r}, not {FORMAT}")
    if not isinstance(identity := manifest.get("identity"), dict) or entries.key(**identity) != folder.name:
        raise Damaged(f"{path} is of another engine than its folder's name says")
    return manifest


def _read(path: Path, vouched: dict[str, Any], keep_data: bool) -> bytearray:
    """Hash a file, and return its bytes where `keep_data` wants them. Errors: Damaged; FileNotFoundError.

    It reads piece by piece: a bytearray of gigabytes is cleared first, and other threads would wait for Python's lock
    so long.
    """
    wanted, digest = int(vouched["bytes"]), hashlib.sha256()
    try:
        length = regular_size(path)
        with path.open("rb", buffering=0) as file:
            if length != wanted:
                raise Damaged(f"{path} is damaged (it has {length:,} bytes, its manifest says {wanted:,})")
            data, piece, done = bytearray(), memoryview(bytearray(_PIECE)), 0
            while done < wanted and (read := file.readinto(piece[: wanted - done])):
                digest.update(piece[:read])
                if keep_data:
                    data += piece[:read]
                done += read
    except FileNotFoundError:
        raise FileNotFoundError(path) from None
    except CheckpointError as error:
        raise Damaged(str(error)) from None
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror})") from None
    if digest.hexdigest() != vouched["sha256"]:
        raise Damaged(f"{path} is damaged (its SHA-256 is not the one in its manifest)")
    return data


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _vouch(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
