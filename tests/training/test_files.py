"""Files of a run are whole, or they are what they were."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from training.average import Average
from training.errors import TrainingError
from training.figures import Figures, curves, read_figures
from training.files import read_tensors, write, write_tensors
from training.optimizer import optimizers_of
from training.recipe import PhaseRecipe
from training.state import Optimizers, load_state, save_state


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    write(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"cannot be written, 3 bytes: the disk is full; what was there is kept"):
        write(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(TrainingError, match="cannot be read as safetensors"):
        read_tensors(tmp_path / "a.safetensors")


def stepped(net: torch.nn.Module, optimizers: Optimizers, average: Average, steps: range) -> None:
    for step in steps:
        net.zero_grad()
        net(torch.full((2, 3), float(step))).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        average.update(net, step)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_state_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    def begun() -> tuple[torch.nn.Module, Optimizers, Average]:
        torch.manual_seed(3)
        net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 16))
        return net, optimizers_of(net, PhaseRecipe(rate=0.01, optimizer=kind)), Average(net, 0.9)

    whole, broken = begun(), begun()
    stepped(*whole, range(9))
    stepped(*broken, range(4))
    save_state(tmp_path / "s", 4, *broken)
    resumed = begun()
    assert load_state(tmp_path / "s", *resumed) == 4
    stepped(*resumed, range(4, 9))
    for name, parameter in whole[0].named_parameters():
        assert torch.equal(parameter, dict(resumed[0].named_parameters())[name])
        assert torch.equal(whole[2].weights[name], resumed[2].weights[name])


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "s", {"weight.a": torch.zeros(2)}, {"step": "3"})
    net = torch.nn.Linear(2, 2)
    with pytest.raises(TrainingError, match="is no checkpoint of this phase"):
        load_state(tmp_path / "s", net, optimizers_of(net, PhaseRecipe()), None)


def test_figures_after_the_step_that_is_resumed_from_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "figures.csv"
    figures = Figures(path, 0)
    for step in range(1, 6):
        figures.add({"step": step, "loss": 1 / step})
    with path.open("a") as file:
        file.write("6,0.1")  # no end: the process died
        file.write("66\n7")
    resumed = Figures(path, 3)
    resumed.add({"step": 4, "loss": 9.0})
    assert [row["step"] for row in read_figures(path)] == [1, 2, 3, 4] and read_figures(path)[-1]["loss"] == 9


def test_curves_have_ink_where_there_are_figures() -> None:
    rows = [{"step": float(i), "loss": 1.0 / i} for i in range(1, 50)]
    colours = curves(rows, ["loss"]).getcolors(1 << 16)
    assert colours and (0x1F, 0x77, 0xB4) in {colour for _, colour in colours}
    assert curves([], ["loss"]).getcolors() == [(900 * 420, (255, 255, 255))]
