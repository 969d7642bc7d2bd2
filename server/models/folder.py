"""The folder that models may come from, as whoever started the server named it: nothing else is ever opened."""

from __future__ import annotations

import os
import re
from pathlib import Path

from server.errors import UnknownModel

_FILE = ".safetensors"
_LISTED = 1000  # names that are told at most


class Folder:
    """Names the models in a folder: its folders in diffusers' layout, and its .safetensors files.

    A name is looked up among those that are there, and is no path: nothing can be written in it that leads elsewhere. A
    link that leads out of the folder is no model of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        """List the names, now, in order."""
        try:
            entries, top = sorted(self.path.iterdir()), self.path.resolve()
        except OSError:
            return []
        return [each.name for each in entries if _is_model(each) and each.resolve().is_relative_to(top)][:_LISTED]

    def model(self, name: str) -> Path:
        """Return the path of a model; a file's ending may be left out, as in the id that clients see.

        Errors: UnknownModel, with the names that there are.
        """
        names = self.names()
        if name not in names and f"{name}{_FILE}" in names:
            name += _FILE
        if name not in names:
            known = f"it has {', '.join(names[:20])}" if names else "it has none"
            raise UnknownModel(f"model is {name[:64]!r}, which is not in the folder of models; {known}")
        return self.path / name


def _is_model(path: Path) -> bool:
    if path.name.startswith(".") or re.search(r"[\ud800-\udfff]", path.name):  # a byte that is no UTF-8, as no text is
        return False
    # Path.is_file raises where it may not look: a volume's lost+found would leave nobody any model.
    return path.suffix.lower() == _FILE if os.path.isfile(path) else os.path.isfile(path / "model_index.json")
