"""The names of the models that may be swapped to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.errors import UnknownModel
from server.models.folder import Folder


def test_a_name_that_is_no_text_is_left_out(tmp_path: Path) -> None:
    """No message could carry it, and the list would fail for the others' sake."""
    for name in (b"caf\xe9.safetensors", "café.safetensors".encode()):
        (tmp_path / os.fsdecode(name)).touch()
    folder = Folder(tmp_path)
    assert folder.names() == ["café.safetensors"]
    with pytest.raises(UnknownModel, match="it has café"):
        folder.model(os.fsdecode(b"caf\xe9.safetensors"))
