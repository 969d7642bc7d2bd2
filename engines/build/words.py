"""Puts engines into words: one line each, in columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engines.artifact.opened import Artifact
from engines.build.builder import Order

HEAD = ("engine", "shapes", "target", "size", "build")


def aligned(rows: Sequence[Sequence[str]], head: Sequence[str] = HEAD) -> list[str]:
    """Return lines whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def row(order: Order, target: str, manifest: dict[str, Any] | None) -> list[str]:
    """Return the cells of an order's line; `manifest` is the engine's, None where it was not built."""
    size, build = "-", "not built"
    if manifest is not None:
        size, build = amount(manifest["engine"]["bytes"]), f"{manifest['seconds']:.1f} s"
    return [order.network, shapes(order), target, size, build]


def title(order: Order) -> str:
    """Name an order by its network and shapes: "unet sample 1x4x64x64, timestep 1, context 1x77x768"."""
    return f"{order.network} {shapes(order)}"


def shapes(order: Order) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in order.shapes.items())


def amount(count: float) -> str:
    """Write a number of bytes for people: "28 MB"."""
    for unit in ("bytes", "kB", "MB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def span(seconds: float) -> str:
    """Write a number of seconds for people: "40 s", "3 min"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def command(artifact: Artifact, identity: dict[str, Any], buckets: Sequence[int] = ()) -> str:
    """Return the command that builds an engine of this identity, or one like it for `buckets` of rows."""
    words = f"make engines MODEL={artifact.folder} BACKEND={identity['backend']}"
    words += f" ARCH={identity['target']} PRECISION={identity['precision']}"
    shapes, factor = identity["shapes"], artifact.spec.vae.factor
    if rows := shapes.get("sample"):
        words += f" ROWS={','.join(str(number) for number in buckets or rows[:1])}"
    if latents := shapes.get("sample") or shapes.get("latents"):
        words += f" SIZES={latents[3] * factor}x{latents[2] * factor}"
    if (context := shapes.get("context")) and (chunks := context[1] // artifact.spec.text.tokens) > 1:
        words += f" CHUNKS={chunks}"
    if identity.get("attention", "native") != "native":
        words += f" ATTENTION={identity['attention']}"
    return words
