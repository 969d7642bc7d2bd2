"""The figures of a phase: a CSV with a row every so many steps, and the same as a picture of curves."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from training.errors import TrainingError
from training.files import write

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")
_SIZE, _LEFT, _BELOW = (900, 420), 70, 40


class Figures:
    """Keeps the rows of a phase in `path`; those after the step that a run resumes from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.rows = path, [row for row in read_figures(path) if row["step"] <= step] if step else []
        self.write()

    def add(self, row: Mapping[str, float]) -> None:
        """Append a row. Errors: TrainingError."""
        self.rows.append(dict(row))
        if len(self.rows) == 1:
            return self.write()
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(_cells(row))
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be written: {error}") from None

    def write(self) -> None:
        """Replace the file by one with every row, which is then on the disk. Errors: TrainingError."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerows([list(self.rows[0]), *map(_cells, self.rows)] if self.rows else [])
        write(self.path, text.getvalue().encode())

    def draw(self, path: Path, names: list[str]) -> None:
        """Draw curves of these columns over the steps, each smoothed over a fiftieth of them, on a logarithmic axis."""
        write(path, _png(curves(self.rows, [name for name in names if self.rows and name in self.rows[0]])))


def _cells(row: Mapping[str, float]) -> list[str]:
    return [f"{value:.9g}" for value in row.values()]


def read_figures(path: Path) -> list[dict[str, float]]:
    """Read the rows of a CSV; none where it is not there, and none of a row that was cut off while it was written."""
    rows: list[dict[str, float]] = []
    with contextlib.suppress(FileNotFoundError):
        names, *lines = [*csv.reader(io.StringIO(path.read_text(encoding="utf-8"))), []]
        for line in lines:
            with contextlib.suppress(ValueError):
                rows.append(dict(zip(names, map(float, line), strict=True)))
    return [row for row in rows if row]


def curves(rows: list[dict[str, float]], names: list[str]) -> Image.Image:
    """Draw the curves."""
    picture = Image.new("RGB", _SIZE, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    series = {name: _smooth([row[name] for row in rows]) for name in names}
    values = [math.log10(v) for each in series.values() for v in each if v > 0 and math.isfinite(v)]
    if not values or len(rows) < 2:
        return picture
    low, high = min(values), max(values) + 1e-3
    first, last = rows[0]["step"], rows[-1]["step"]
    width, height = _SIZE[0] - _LEFT - 20, _SIZE[1] - _BELOW - 20

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + width * (step - first) / max(1, last - first)
        return x, 20 + height * (high - math.log10(value)) / (high - low)

    for k in range(5):
        value = 10 ** (low + (high - low) * k / 4)
        x, y = place(first, value)
        pen.line((x, y, _SIZE[0] - 20, y), fill="#dddddd")
        pen.text((_LEFT - 8, y), f"{value:.3g}", fill="#555555", font=font, anchor="rm")
        step = first + (last - first) * k / 4
        pen.text((place(step, 10**low)[0], _SIZE[1] - 22), f"{step:.0f}", fill="#555555", font=font, anchor="mm")
    for number, (name, each) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [place(row["step"], v) for row, v in zip(rows, each, strict=True) if v > 0 and math.isfinite(v)]
        if len(points) > 1:
            pen.line(points, fill=colour, width=2)
        pen.text((_SIZE[0] - 30, 24 + 16 * number), name, fill=colour, font=font, anchor="ra")
    return picture


def _smooth(values: list[float]) -> list[float]:
    width, total, means = max(1, len(values) // 50), 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - width] if i >= width else 0)
        means.append(total / min(i + 1, width))
    return means


def _png(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
