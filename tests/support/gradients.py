"""Gradients of each phase's first step, and how far a step of Muon takes processes apart, as a file: of one process, or
of several that torchrun starts.

torchrun --nproc-per-node 2 -m tests.support.gradients FOLDER
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.support.training import context_of, tiny
from training import processes
from training.files import write_tensors
from training.loop import Phase
from training.networks import new_text, new_unet
from training.optimizer import optimizers_of
from training.phases.adapter import Adapter
from training.phases.autoencoder import Autoencoder
from training.phases.classifier import Classifier
from training.phases.contrastive import Contrastive
from training.phases.denoiser import Denoiser
from training.processes import Processes


def gradients(folder: Path, joined: Processes) -> dict[str, Tensor]:
    """Gradients and figures by phase and parameter, means over the processes."""
    recipe = tiny(bank=32)
    context = context_of(folder, recipe, joined)
    autoencoder, contrastive = Autoencoder(context), Contrastive(context)
    vae = (autoencoder.encoder, autoencoder.decoder)
    frozen = new_text(recipe).requires_grad_(False)
    phases: list[Phase] = [contrastive, autoencoder, Denoiser(context, new_text(recipe), vae, 1.0)]
    phases += [Adapter(context, new_unet(recipe), frozen, contrastive.net.vision, vae, 1.0), Classifier(context)]
    # At first every output of the UNet is zero, and nothing before its last layer has a gradient.
    for phase in phases[2:4]:
        torch.manual_seed(1)
        torch.nn.init.normal_(phase.unet.conv_out.weight, std=0.1)  # type: ignore[attr-defined]
    kept = {}
    for phase in phases:
        phase.net.zero_grad(set_to_none=True)
        losses = phase.losses(phase.read(3), 3)
        next(iter(losses.values())).backward()
        joined.mean_gradients(phase.net.parameters())
        for name, parameter in phase.net.named_parameters():
            assert parameter.grad is not None, name
            kept[f"{phase.name}.{name}"] = parameter.grad.clone()
        kept[f"{phase.name} loss"] = joined.mean(next(iter(losses.values())).detach())
        for optimizer in optimizers_of(phase.net, dataclasses.replace(phase.recipe, optimizer="muon")):
            optimizer.step()
        kept[f"{phase.name} apart"] = _apart(phase.net, joined)
    return kept


def _apart(net: nn.Module, joined: Processes) -> Tensor:
    """Return how far the weights of the processes are apart: 0 where all have the same bits."""
    weights = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
    return joined.mean((weights - joined.mean(weights.clone())).abs().max())


if __name__ == "__main__":
    torch.set_num_threads(1)
    joined = processes.begin("cpu")
    computed = gradients(Path(sys.argv[1]), joined)
    if joined.first:
        write_tensors(Path(sys.argv[1]) / "gradients.safetensors", computed)
    processes.end()
