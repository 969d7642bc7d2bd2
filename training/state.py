"""What a phase needs to go on as if nothing had happened: weights, the optimizers' moments, averages, and the step.

Random numbers and the place in the data are functions of the step (training/draws.py), so they need no room.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from training.average import Average
from training.errors import TrainingError
from training.files import read_tensors, write_tensors
from training.optimizer import Muon

_MOMENTS = {torch.optim.AdamW: ("exp_avg", "exp_avg_sq", "step"), Muon: ("momentum",)}
Optimizers = Sequence[torch.optim.Optimizer]


def save_state(path: Path, step: int, net: nn.Module, optimizers: Optimizers, average: Average | None) -> None:
    """Replace the checkpoint by one after `step` steps. Errors: TrainingError."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in net.named_parameters():
        tensors[f"weight.{name}"] = parameter
        for optimizer in optimizers:
            for moment, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{moment}.{name}"] = value
        if average is not None:
            tensors[f"average.{name}"] = average.weights[name]
    write_tensors(path, tensors, {"step": str(step)})


@torch.no_grad()
def load_state(path: Path, net: nn.Module, optimizers: Optimizers, average: Average | None) -> int:
    """Take up the checkpoint, and return the number of steps behind it. Errors: TrainingError."""
    tensors, note = read_tensors(path)
    parameters = dict(net.named_parameters())
    kinds = ("weight", *(("average",) if average is not None else ()))
    names = {parameter: name for name, parameter in parameters.items()}
    moved = [(o, p) for o in optimizers for group in o.param_groups for p in group["params"]]
    wanted = {f"{kind}.{name}" for kind in kinds for name in parameters}
    wanted |= {f"{moment}.{names[p]}" for o, p in moved for moment in _MOMENTS[type(o)]}
    if wanted != tensors.keys() or not note.get("step", "").isdecimal():
        raise TrainingError(f"{path} is no checkpoint of this phase; delete it to begin the phase anew")
    for name, parameter in parameters.items():
        if tensors[f"weight.{name}"].shape != parameter.shape:
            raise TrainingError(f"{path}: {name} has another shape than the recipe's network")
        parameter.copy_(tensors[f"weight.{name}"])
        if average is not None:
            average.weights[name].copy_(tensors[f"average.{name}"])
    for optimizer, parameter in moved:
        kept = {moment: tensors[f"{moment}.{names[parameter]}"] for moment in _MOMENTS[type(optimizer)]}
        # A fused AdamW has the number of its steps on the device too (torch 2.13, optim/adam.py).
        optimizer.state[parameter] = {moment: value.to(parameter.device) for moment, value in kept.items()}
    return int(note["step"])
