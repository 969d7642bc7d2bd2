"""What a checkpoint keeps of its run: curves and figures of each phase, and the sheets that it was judged by."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from training.files import write

FOLDER = "record"  # of the checkpoint
_QUALITY = 85  # of WebP: the sheets of 700 pictures would be 3 MB as PNG


@dataclass(frozen=True)
class Record:
    """Holds the names of files in FOLDER, in the order in which they were made."""

    phases: tuple[str, ...] = ()  # each has PHASE-curves.png and PHASE-figures.csv
    sheets: tuple[str, ...] = ()  # SHEET.webp


def keep_record(run: Path, checkpoint: Path, phases: tuple[str, ...]) -> Record:
    """Copy what is to be kept of the phases that the run has been through. Errors: TrainingError."""
    place = checkpoint / FOLDER
    done = tuple(phase for phase in phases if (run / phase / "curves.png").exists())
    for phase in done:
        for name in ("curves.png", "figures.csv"):
            write(place / f"{phase}-{name}", (run / phase / name).read_bytes())
    sheets = sorted((run / "evaluation").glob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    sheets = [path for path in sheets if path.name != "sheet.png"]  # which lies beside the card
    for path in sheets:
        data = io.BytesIO()
        with Image.open(path) as picture:
            picture.save(data, "WEBP", quality=_QUALITY, method=6)
        write(place / f"{path.stem}.webp", data.getvalue())
    write(place / "evaluation.json", (run / "evaluation/evaluation.json").read_bytes())
    return Record(done, tuple(path.stem for path in sheets))
