"""The bank of latents: several processes fill it, each its own files, and have what one alone has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.training import context_of, tiny
from training.networks import new_vae
from training.phases import bank
from training.phases.bank import Bank
from training.processes import Processes

COUNT, FILE = 40, 16


class Paired(Processes):
    """One of two processes, of which the other is done when this one waits: no process is started."""

    def wait(self) -> None: ...

    def share(self, batch: int) -> range:
        return range(batch)


def test_each_process_fills_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank, "_FILE", FILE)
    recipe, (encoder, _) = tiny(), new_vae(tiny())
    folder = tmp_path / "two/bank"

    def here() -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    with pytest.raises(Exception, match="00000016"):  # the other's is not there, as it has not begun
        Bank(context_of(tmp_path / "two", recipe, Paired(0, 2)), encoder, 1.5, COUNT)
    assert here() == [f"{first:08d}.{end}" for first in (0, 32) for end in ("json", "safetensors")]
    kept = {name: (folder / name).stat().st_mtime_ns for name in here()}
    two = Bank(context_of(tmp_path / "two", recipe, Paired(1, 2)), encoder, 1.5, COUNT)
    assert len(here()) == 6 and all((folder / name).stat().st_mtime_ns == time for name, time in kept.items())
    one = Bank(context_of(tmp_path / "one", recipe), encoder, 1.5, COUNT)
    (ours, words), (theirs, their_words) = one.read("denoiser", 1, COUNT), two.read("denoiser", 1, COUNT)
    assert words == their_words and torch.equal(ours, theirs)
