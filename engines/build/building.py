"""Builds orders into the store: valid engines are skipped, a killed run is picked up, nothing half is kept."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.artifact.opened import Artifact, open_artifact
from engines.build.builder import Builder, Order
from engines.build.makers import Maker
from engines.build.time_left import Clock
from engines.build.words import amount, title
from engines.cache import disk, entries, lock, store
from engines.cache.sealed import Damaged
from engines.process import apart
from engines.process.apart import ApartError
from pipeline.errors import CheckpointError

Say = Callable[[str], None]
# Makes an order's engine at the path, in a folder that is being filled; called back while there is nothing to say.
Compile = Callable[[Order, Path, entries.Fresh, Callable[[], None], Say], dict[str, Any]]


@dataclass(frozen=True)
class Built:
    """An order and what has become of it."""

    order: Order
    manifest: dict[str, Any] | None = None  # of the engine in the store
    new: bool = False
    why: str = ""  # it was not built: a sentence


def build_all(artifact: Artifact, builder: Builder, orders: list[Order], compile: Compile, say: Say) -> list[Built]:
    """Return every order's engine, from the store or built now; a compiler that fails costs its engine only.

    Errors: DiskError, or ApartError with `final` set, when the disk ends all work; engines built until then stay.
    """
    known = {number: manifest for number, order in enumerate(orders) if (manifest := _valid(builder, order, say))}
    missing = [order for number, order in enumerate(orders) if number not in known]
    clock = Clock(artifact, builder)
    say(f"{artifact.id} for {builder.name} on {builder.target}: {_engines(len(orders))}, {len(missing)} to build")
    for number, order in enumerate(orders):
        say(f"  {'valid' if number in known else 'build'}  {title(order)}")
    built, position = [], 0
    for number, order in enumerate(orders):
        if number in known:
            built.append(Built(order, known[number]))
            continue
        position += 1
        head = f"[{position}/{len(missing)}] {title(order)}"
        say(f"{head}: building{clock.left(missing[position - 1 :])}")
        try:
            manifest, new = _build(
                artifact, builder, order, compile, clock, _prefixed(order, position, len(missing), say)
            )
        except ApartError as error:
            if error.final:
                raise
            built.append(Built(order, why=f"{title(order)} was not built: {error}"))
            say(built[-1].why)
            continue
        built.append(Built(order, manifest, new))
        took = f"built in {manifest['seconds']:.1f} s" if new else "built by another process"
        say(f"{head}: {took}, {amount(manifest['engine']['bytes'])}{clock.left(missing[position:])}")
    return built


def _build(
    artifact: Artifact, builder: Builder, order: Order, compile: Compile, clock: Clock, say: Say
) -> tuple[dict[str, Any], bool]:
    """Build an engine that the store lacks; return its manifest, and False where another process was faster.

    Errors: ApartError, DiskError, LimitError, and those of `compile`.
    """
    identity = builder.identity(order)
    begin = time.monotonic()

    def tick() -> None:
        say(f"{time.monotonic() - begin:.0f} s so far{clock.expected(order)}")

    def write(new: entries.Fresh, out: Path) -> dict[str, Any]:
        facts = compile(order, out, new, tick, say)
        if not out.is_file():
            raise ApartError("its process wrote no engine")
        return facts

    with lock.alone(store.place(identity), say) as waited:
        if waited and (manifest := _valid(builder, order, say)):
            return manifest, False
        manifest = store.keep(identity, {"model": artifact.id, "spec": artifact.spec_digest}, write)
    clock.took(order, manifest["seconds"])
    return manifest, True


def apart_from(artifact: Artifact, maker: Maker, target: str | None, precision: str) -> Compile:
    """Return a Compile that builds each engine in a process of its own."""

    def compile(order: Order, out: Path, new: entries.Fresh, tick: Callable[[], None], say: Say) -> dict[str, Any]:
        job = {
            "folder": str(artifact.folder),
            "digest": artifact.digest,
            "maker": maker.to_json(),
            "target": target,
            "precision": precision,
            "network": order.network,
            "shapes": {name: list(shape) for name, shape in order.shapes.items()},
            "out": str(out),
        }
        return apart.run("engines.build.building:build_one", job, say, tick=tick, keep=[new.number])

    return compile


def _prefixed(order: Order, position: int, of: int, say: Say) -> Say:
    """Return `say` for one engine: each of its lines begins with the engine's number and network."""
    return lambda line: say(f"[{position}/{of}] {order.network}: {line.removeprefix(f'{order.network}: ')}")


def build_one(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """Build one engine in the child process, and return the facts for its manifest."""
    artifact = open_artifact(Path(job["folder"]))
    if artifact.digest != job["digest"]:
        raise CheckpointError(f"{artifact.folder} has changed since the build began; run the same command again")
    builder = Maker(**job["maker"]).make(artifact, job["target"], job["precision"])
    order = Order(job["network"], {name: tuple(shape) for name, shape in job["shapes"].items()})
    out = Path(job["out"])
    try:
        return builder.build(order, out, say)
    except OSError as error:  # a library's own way to write; ours raise DiskError
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise disk.DiskError("write", out, error) from None


def _valid(builder: Builder, order: Order, say: Say) -> dict[str, Any] | None:
    try:
        return store.verify(builder.identity(order))
    except Damaged as error:
        say(f"{error}; building it again")
        return None


def _engines(count: int) -> str:
    return f"{count} engine{'' if count == 1 else 's'}"
