"""Where the small files of a checkpoint come from: a folder in diffusers' layout, or memory.

A single-file checkpoint has no folder. What its configs and its tokenizer would say is derived from its tensors and
lies in memory, and whoever reads a spec or a tokenizer cannot tell the difference.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pipeline.errors import CheckpointError
from pipeline.files import read_file


class Source(Protocol):
    """Reads one checkpoint's configs and tokenizer, by their names in diffusers' layout ("unet/config.json")."""

    path: Path  # the folder or the file that a user named

    def place(self, name: str) -> Path:
        """Return what an error calls the file `name`."""
        ...

    def holds(self, name: str) -> bool:
        """Tell whether there is a file `name`, readable or not."""
        ...

    def read(self, name: str, largest: int) -> bytes:
        """Return the file's bytes. Errors: FileNotFoundError; CheckpointError, also for more than `largest` bytes."""
        ...


class Folder:
    """Reads the files of a folder. Links are followed, as the caches of model hubs are made of them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def place(self, name: str) -> Path:
        return self.path / name

    def holds(self, name: str) -> bool:
        return os.path.lexists(self.path / name)

    def read(self, name: str, largest: int) -> bytes:
        return read_file(self.path / name, largest)


class InMemory:
    """Holds files that were derived from the single file `path`."""

    def __init__(self, path: Path, files: Mapping[str, bytes]) -> None:
        self.path, self._files = path, files

    def place(self, name: str) -> Path:
        """Return the single file and the derived name: no such path exists, and both parts help whoever reads it."""
        return Path(f"{self.path} ({name})")

    def holds(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str, largest: int) -> bytes:
        if name not in self._files:
            raise FileNotFoundError(name)
        if len(self._files[name]) > largest:
            raise CheckpointError(f"{self.place(name)} has {len(self._files[name])} bytes; at most {largest} are read")
        return self._files[name]


class Renamed:
    """Reads another source's files below the folder `there` as if they lay below `here`."""

    def __init__(self, source: Source, here: str, there: str) -> None:
        self.path, self._source, self._here, self._there = source.path, source, here, there

    def place(self, name: str) -> Path:
        return self._source.place(self._name(name))

    def holds(self, name: str) -> bool:
        return self._source.holds(self._name(name))

    def read(self, name: str, largest: int) -> bytes:
        return self._source.read(self._name(name), largest)

    def _name(self, name: str) -> str:
        return name.replace(f"{self._here}/", f"{self._there}/", 1) if name.startswith(f"{self._here}/") else name


def source_of(checkpoint: Path | Source) -> Source:
    """Return `checkpoint` itself, or for a path the folder that it names."""
    return Folder(checkpoint) if isinstance(checkpoint, Path) else checkpoint
