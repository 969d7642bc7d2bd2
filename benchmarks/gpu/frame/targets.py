"""What an H200 must reach: gate and stretch, and whether the rows of a run reach them.

Every figure is a promise made before anything ran: floors and published figures (docs/gpu.md) say where each is from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

Row = dict[str, str]


@dataclass(frozen=True)
class Target:
    """Names the rows it is about, what is read from them, and the two limits."""

    name: str
    rows: tuple[str, str, str, str]  # section, what, case, mode: patterns of fnmatch
    column: str  # p50, rate or of_floor
    unit: str
    gate: float
    stretch: float | None
    least: bool = False  # more is better, and the least row counts; else the largest
    scale: float = 1.0  # of the column, to the unit

    def figure(self, rows: Iterable[Row]) -> float | None:
        """Return the worst figure of the rows that it is about; None where there is none."""
        keys = ("section", "what", "case", "mode")
        mine = [row for row in rows if all(fnmatchcase(row[k], p) for k, p in zip(keys, self.rows, strict=True))]
        figures = [float(row[self.column]) * self.scale for row in mine if row[self.column]]
        return (min(figures) if self.least else max(figures)) if figures else None

    def reached(self, figure: float, limit: float) -> bool:
        return figure >= limit if self.least else figure <= limit


def _time(name: str, rows: tuple[str, str, str, str], gate: float, stretch: float) -> Target:
    return Target(name, rows, "p50", "ms", gate, stretch, scale=1e-3)


def _rate(name: str, case: str, gate: float, stretch: float | None) -> Target:
    return Target(name, ("attention", "self", case, "ours"), "rate", "TFLOP/s", gate, stretch, least=True)


def _memory(kernel: str, shape: str) -> Target:
    # Tensors of 84 MB and more only: small ones measure the launch.
    rows = ("kernels", kernel, f"32 rows {shape}", "ours")
    return Target(f"{kernel}, 32 rows, of the copy bandwidth", rows, "of_floor", "", 0.85, None, least=True)


TARGETS = (
    *(_rate(f"attention d40 4096x4096, {n} rows", f"{n} rows 4096x4096 h8 d40", 300, 330) for n in (2, 8, 32)),
    *(_rate(f"attention d64 4096x4096, {n} rows", f"{n} rows 4096x4096 h5 d64", 420, None) for n in (16, 32)),
    *(_memory(*large) for large in (("group_norm_silu", "*x64x64"), ("layer_norm", "4096x*"), ("geglu", "4096x*"))),
    _time("SD 1.5 UNet, 2 rows, graph", ("unet", "SD 1.5", "2 rows", "ours"), 5.5, 4.0),
    _time("SD 1.5 UNet, 32 rows, graph", ("unet", "SD 1.5", "32 rows", "ours"), 56, 50),
    _time("VAE decode 512x512", ("vae", "decode", "1 picture", "ours"), 7, 5.5),
    *(
        _time(f"guided step, {n} requests", ("captured", "SD 1.5 step", f"{n} requests", "replay"), gate, stretch)
        for n, gate, stretch in ((1, 5.5, 4.0), (4, 16, 14.5), (8, 29, 26), (16, 56, 50))
    ),
    Target(
        "gap between replays", ("captured", "gap", "*", "replay"), "p50", "us", 10, None
    ),
    _time("30 steps to uint8 on the host", ("captured", "SD 1.5 picture", "30 steps", "alone"), 175, 135),
    Target(
        "server, 16 in flight, 30 steps", ("serving", "throughput", "16 in flight", "server"), "p50", "images/s",
        8.8, 9.8, least=True,
    ),
    Target("server over the bare loop", ("serving", "ratio", "16 in flight", "*"), "p50", "x", 0.95, None, least=True),
    Target("over diffusers compiled, 1 request", ("peer", "gain", "1 requests", "*"), "p50", "x", 1.5, 2.0, least=True),
)  # fmt: skip


def verdict(target: Target, rows: list[Row]) -> tuple[str, str, str]:
    """Put (figure, gate, stretch) into words: 'reached', or by how much it is missed."""
    figure = target.figure(rows)
    if figure is None:
        return "not measured", "", ""

    def against(limit: float | None) -> str:
        if limit is None:
            return ""
        share = figure / limit - 1 if target.least else limit / figure - 1  # how much faster than asked
        return f"{'reached' if target.reached(figure, limit) else 'NOT reached'} ({share:+.1%})"

    return f"{figure:.4g} {target.unit}".strip(), against(target.gate), against(target.stretch)
