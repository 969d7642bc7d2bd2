"""Places that a server may write to, each empty at its start: what it leaves there, and beside a checkpoint."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_VARIABLES = ("LATENTD_CACHE", "HOME", "TMPDIR")


class Places:
    """Holds empty folders for a process's cache, home and temporary files, and a checkpoint as it was."""

    def __init__(self, checkpoint: Path, scratch: Path) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="places-", dir=scratch))
        self._checkpoint, self._before = checkpoint, _files(checkpoint)
        for name in _VARIABLES:
            (self._root / name).mkdir()

    @property
    def environment(self) -> dict[str, str]:
        """Return the process's variables: ours, but for those that name a place."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LATENTD_", "XDG_"))}
        return kept | {name: str(self._root / name) for name in _VARIABLES}

    def written(self) -> list[str]:
        """Return the files that are in the places, and those of the checkpoint that changed, came or went."""
        changed = _files(self._checkpoint).items() ^ self._before.items()
        return sorted({path for path, _ in changed} | _files(self._root).keys())


def _files(path: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of each file; a single file is its own, with what lies beside it by its name."""
    inside = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.stem}*")
    return {str(each): (each.stat().st_size, each.stat().st_mtime_ns) for each in inside if each.is_file()}
