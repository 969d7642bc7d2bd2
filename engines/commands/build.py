"""python -m engines build and clean: reads the options, and prints what engines/build/building.py does."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from engines.artifact.first_use import artifact_of
from engines.build.builder import Builder, Order
from engines.build.building import apart_from, build_all
from engines.build.makers import GPU_ROWS, maker_of
from engines.build.words import aligned, amount, row
from engines.cache import entries, eviction
from engines.commands.variable import source_of
from engines.errors import BackendError
from engines.graphs import check_fit
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.prompt import MOST_CHUNKS
from pipeline.size import Size, parse_sizes
from pipeline.spec import Spec

_MOST_ROWS, _MOST_SIDE = 64, 4096
COMPILED_AT_START = ("openvino", "onnxruntime", "torch")
_PRECISIONS = ("auto", "f32", "bf16", "f16")


def say(line: str) -> None:
    print(line, flush=True)


def build(options: argparse.Namespace) -> int:
    """Build every plan that the options name into the store; 0 when all are there. Errors: LatentdError."""
    rows, chunks = _rows(options.rows), _chunks(options.chunks)
    if options.backend in ("auto", *COMPILED_AT_START):
        return _nothing_to_build(options)
    maker = maker_of(options.backend, options.attention)
    maker.check_library()
    eviction.limit()  # a wrong one is refused before the work, not after the first engine
    checkpoint = open_checkpoint(options.model, options.prediction)
    sizes = _sizes(options.sizes, checkpoint.spec)
    artifact = artifact_of(checkpoint)
    builder = maker.make(artifact, options.target or None, options.precision)
    orders = ordered(builder, rows, sizes, chunks)
    compile = apart_from(artifact, maker, options.target or None, options.precision)
    built = build_all(artifact, builder, orders, compile, say)
    say("")
    for line in aligned([row(each.order, builder.target, each.manifest) for each in built]):
        say(line)
    say(f"\nengines are in {entries.cache_folder() / 'engines'}")
    say(f"their bytes are vouched for; that they run, and how fast, is for a card of {builder.target} to show")
    failed = [each.why for each in built if each.why]
    for why in failed:
        say(why)
    return 1 if failed else 0


def _nothing_to_build(options: argparse.Namespace) -> int:
    """Say so, once it is known that the checkpoint can be served: its weights fit, and its graphs are at hand."""
    backend = "openvino" if options.backend == "auto" else options.backend
    for what, value, neutral in (("ARCH", options.target, ("", "cpu")), ("ATTENTION", options.attention, ("native",))):
        if value not in neutral:
            raise BackendError(f"{what}={value} is for TensorRT's plans; leave it away with backend {backend}")
    if options.precision not in _PRECISIONS:
        raise BackendError(f"precision {options.precision!r} is unknown; there are: {', '.join(_PRECISIONS)}")
    checkpoint = open_checkpoint(options.model, options.prediction)
    _sizes(options.sizes, checkpoint.spec)
    check_fit(checkpoint)
    say(f"{checkpoint.id}: {backend} compiles from memory at every start, so nothing needs building ahead")
    return 0


def ordered(builder: Builder, rows: Sequence[int], sizes: Sequence[Size], chunks: Sequence[int]) -> list[Order]:
    """Return the orders of every length of prompt, each once."""
    every = [order for length in chunks for order in builder.orders(rows, sizes, length)]
    return [order for number, order in enumerate(every) if order not in every[:number]]


def clean() -> int:
    """Empty the cache, and say what went."""
    removed, stayed = eviction.clean()
    for kind in entries.KINDS:
        if gone := [entry for entry in removed if entry.path.parent.name == kind]:
            one = kind if len(gone) > 1 else kind.removesuffix("s")
            bytes_gone = amount(sum(entry.bytes for entry in gone))
            say(f"removed {len(gone)} {one} ({bytes_gone}) from {entries.cache_folder()}")
    for entry in stayed:
        say(f"kept {entry.path}: a live process uses it")
    if not removed and not stayed:
        say(f"nothing to remove in {entries.cache_folder()}")
    return 0


def _rows(text: str) -> tuple[int, ...]:
    return _numbers("ROWS", text, GPU_ROWS, _MOST_ROWS)


def _chunks(text: str) -> tuple[int, ...]:
    return _numbers("CHUNKS", text, (1,), MOST_CHUNKS)


def _numbers(name: str, text: str, default: tuple[int, ...], most: int) -> tuple[int, ...]:
    if not text:
        return default
    numbers = [int(part) for part in text.split(",") if re.fullmatch(r"\d{1,3}", part.strip())]
    if len(numbers) != text.count(",") + 1 or not all(1 <= number <= most for number in numbers):
        where = source_of(text, name)
        raise BackendError(f"{where}={text}: it takes numbers from 1 to {most}, separated by commas, such as 1,2")
    return tuple(sorted(set(numbers)))


def _sizes(text: str, spec: Spec) -> list[tuple[int, int]]:
    default, unit = spec.defaults, spec.size_multiple
    if not text:
        return [(default.width, default.height)]
    try:
        sizes = parse_sizes(text)
    except ValueError:
        sizes = []
    if not sizes or any(not 0 < side <= _MOST_SIDE or side % unit for size in sizes for side in size):
        where = source_of(text, "SIZES")
        raise BackendError(
            f"{where}={text}: it takes WIDTHxHEIGHT, multiples of {unit} up to {_MOST_SIDE}, separated by commas"
        )
    return sizes
