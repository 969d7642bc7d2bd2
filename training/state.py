"""What a phase needs to go on as if nothing had happened: weights, AdamW's moments, averages, and the step.

Random numbers and the place in the data are functions of the step (training/draws.py), so they need no room.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from training.average import Average
from training.errors import TrainingError
from training.files import read_tensors, write_tensors

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_state(path: Path, step: int, net: nn.Module, optimizer: torch.optim.AdamW, average: Average | None) -> None:
    """Replace the checkpoint by one after `step` steps. Errors: TrainingError."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in net.named_parameters():
        tensors[f"weight.{name}"] = parameter
        for moment, value in optimizer.state[parameter].items():
            tensors[f"{moment}.{name}"] = value
        if average is not None:
            tensors[f"average.{name}"] = average.weights[name]
    write_tensors(path, tensors, {"step": str(step)})


@torch.no_grad()
def load_state(path: Path, net: nn.Module, optimizer: torch.optim.AdamW, average: Average | None) -> int:
    """Take up the checkpoint, and return the number of steps behind it. Errors: TrainingError."""
    tensors, note = read_tensors(path)
    parameters = dict(net.named_parameters())
    kinds = ("weight", *_MOMENTS, *(("average",) if average is not None else ()))
    wanted = {f"{kind}.{name}" for kind in kinds for name in parameters}
    if wanted != tensors.keys() or not note.get("step", "").isdecimal():
        raise TrainingError(f"{path} is no checkpoint of this phase; delete it to begin the phase anew")
    for name, parameter in parameters.items():
        if tensors[f"weight.{name}"].shape != parameter.shape:
            raise TrainingError(f"{path}: {name} has another shape than the recipe's network")
        parameter.copy_(tensors[f"weight.{name}"])
        optimizer.state[parameter] = {
            "step": tensors[f"step.{name}"],
            **{key: tensors[f"{key}.{name}"].to(parameter.device) for key in _MOMENTS[:2]},
        }
        if average is not None:
            average.weights[name].copy_(tensors[f"average.{name}"])
    return int(note["step"])
