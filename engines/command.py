"""python -m engines build and clean: what is said, asked and answered around engines/building.py."""

from __future__ import annotations

import argparse
import re

from engines import cache, measure, room
from engines.artifact import Artifact
from engines.backend import BackendError
from engines.builder import Builder, Order
from engines.builders import GPU_ROWS, ON_CPU, maker_of, target_of
from engines.building import Built, apart_from, build_all
from engines.first_use import artifact_of
from engines.measure import Steps, name_of
from engines.table import amount, row, table
from pipeline.prompt import MOST_CHUNKS

_MOST_ROWS, _MOST_SIDE = 64, 4096


def say(line: str) -> None:
    print(line, flush=True)


def build(options: argparse.Namespace) -> int:
    """0 when every engine that was asked for is in the store. Errors: LatentdError."""
    backend = "openvino" if options.backend == "auto" else options.backend
    maker = maker_of(backend, options.attention)
    maker.check_library()
    target = target_of(backend, options.target)
    room.limit()  # a wrong one is told before the work, not after the first engine
    rows = _rows(options)
    _chunks(options)  # the same of it
    artifact = artifact_of(options.model)
    sizes = _sizes(options.sizes, artifact)
    builder = maker.make(artifact, target, options.precision)
    orders = ordered(options, artifact, builder)
    if not orders:
        say(f"{backend} runs the graphs of {artifact.id} as they are: there is nothing to build ahead")
    compile = apart_from(artifact, maker, target, options.precision)
    built = build_all(artifact, builder, orders, compile, say) if orders else []
    steps = measure.steps_of(artifact, backend, options.precision, sizes, rows, say) if backend in ON_CPU else {}
    say("")
    for line in _table(artifact, builder, built, steps, sizes, rows):
        say(line)
    failed = [each.why for each in built if each.why]
    if orders:
        say(f"\nengines are in {cache.cache_folder() / 'engines'}")
    if backend not in ON_CPU:
        say(f"their bytes are vouched for; that they run, and how fast, is for a card of {target} to show")
    for why in failed:
        say(why)
    return 1 if failed else 0


def ordered(options: argparse.Namespace, artifact: Artifact, builder: Builder) -> list[Order]:
    """All that was asked for, each once. Errors: BackendError."""
    rows, sizes = _rows(options), _sizes(options.sizes, artifact)
    every = [order for chunks in _chunks(options) for order in builder.orders(rows, sizes, chunks)]
    return [order for number, order in enumerate(every) if order not in every[:number]]


def _table(
    artifact: Artifact,
    builder: Builder,
    built: list[Built],
    steps: Steps,
    sizes: list[tuple[int, int]],
    rows: tuple[int, ...],
) -> list[str]:
    if not built:  # a backend without engines has steps all the same
        none = [[name, "any", builder.target, "-", "-", measure.told(step)] for name, step in steps.items()]
        return table(none)
    lines = []
    for each in built:
        step = "; ".join(_steps(artifact, each.order, steps, sizes, rows)) or "cannot run here"
        lines.append(row(each.order, builder.target, each.manifest, "not built" if each.why else step))
    return table(lines)


def _steps(
    artifact: Artifact, order: Order, steps: Steps, sizes: list[tuple[int, int]], rows: tuple[int, ...]
) -> list[str]:
    """What was measured of an order's engine: its own size's, for each number of rows."""
    if order.network == "text_encoder":
        names = {name_of("text_encoder"): ""}
    else:
        shape = order.shapes["sample" if order.network == "unet" else "latents"]
        size = next((size for size in sizes if artifact.spec.latent_shape(*size) == tuple(shape[1:])), None)
        if order.network == "unet":
            names = {name_of("unet", size, number): f"{number} rows " for number in rows}
        else:
            names = {name_of(order.network, size): ""}
    return [prefix + measure.told(steps[name]) for name, prefix in names.items() if name in steps]


def clean() -> int:
    """Empty the cache, and say what went."""
    removed, stayed = room.clean()
    for kind in cache.KINDS:
        if own := [entry for entry in removed if entry.path.parent.name == kind]:
            one = kind if len(own) > 1 else kind.removesuffix("s")
            say(f"removed {len(own)} {one} ({amount(sum(entry.bytes for entry in own))}) from {cache.cache_folder()}")
    for entry in stayed:
        say(f"kept {entry.path}: a live process uses it")
    if not removed and not stayed:
        say(f"nothing to remove in {cache.cache_folder()}")
    return 0


def _rows(options: argparse.Namespace) -> tuple[int, ...]:
    default = GPU_ROWS if options.backend not in ("auto", *ON_CPU) else (2,)
    return _numbers("ROWS", options.rows, default, _MOST_ROWS)


def _chunks(options: argparse.Namespace) -> tuple[int, ...]:
    return _numbers("CHUNKS", options.chunks, (1,), MOST_CHUNKS)


def _numbers(name: str, text: str, default: tuple[int, ...], most: int) -> tuple[int, ...]:
    if not text:
        return default
    found = [int(part) for part in text.split(",") if re.fullmatch(r"\d{1,3}", part.strip())]
    if len(found) != text.count(",") + 1 or not all(1 <= number <= most for number in found):
        raise BackendError(f"{name}={text}: it takes numbers from 1 to {most}, separated by commas, such as 1,2")
    return tuple(sorted(set(found)))


def _sizes(text: str, artifact: Artifact) -> list[tuple[int, int]]:
    default, unit = artifact.spec.defaults, artifact.spec.size_multiple
    if not text:
        return [(default.width, default.height)]
    matches = [re.fullmatch(r"(\d{1,5})x(\d{1,5})", part.strip()) for part in text.split(",")]
    found = [(int(match[1]), int(match[2])) for match in matches if match]
    if len(found) != len(matches) or any(not 0 < side <= _MOST_SIDE or side % unit for size in found for side in size):
        raise BackendError(
            f"SIZES={text}: it takes WIDTHxHEIGHT, multiples of {unit} up to {_MOST_SIDE}, separated by commas"
        )
    return list(dict.fromkeys(found))
