"""What killed exports have left beside their files: taken away by the next one, so that it leaves the same bytes."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from engines import disk


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Remove the temporary files of `names`, as disk.write_whole calls them, from `folder`. Errors: DiskError."""
    for place in (folder / name for name in names):
        for left in place.parent.glob(f".new-{glob.escape(place.name)}-*"):
            disk.remove(left)
