"""Plots of measurements, small PNG files for docs/. matplotlib is in the dev extra, so it is imported when asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Panel:
    """Holds one panel: lines over a common axis, each by its name."""

    title: str
    across: str
    up: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]


def draw(path: Path, panels: Sequence[Panel]) -> None:
    """Write panels below each other as a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(panels), 1, figsize=(7, 2.2 * len(panels)), squeeze=False, layout="constrained")
    for (axis,), panel in zip(axes, panels, strict=True):
        for name, (x, y) in panel.lines.items():
            axis.plot(x, y, label=name, linewidth=1.2, marker="o" if len(x) < 30 else "", markersize=3)
        highest = max((max(y) for _, y in panel.lines.values() if len(y)), default=0.0)
        # A flat line has nearly no range of its own, and would lie on the frame.
        top = 1.1 * highest or 1.0
        axis.set(title=panel.title, xlabel=panel.across, ylabel=panel.up, ylim=(0, top))
        axis.grid(alpha=0.3)
        if len(panel.lines) > 1:
            axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
