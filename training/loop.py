"""The training loop, one for all phases: read, differentiate, step, average, and now and then keep, report and draw."""

from __future__ import annotations

import math
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from training.average import Average
from training.errors import TrainingError
from training.figures import Figures
from training.files import read_tensors, write_tensors
from training.optimizer import optimizers_of
from training.processes import Processes
from training.recipe import PhaseRecipe
from training.sheet import write_png
from training.state import load_state, save_state

STATE, WEIGHTS = "state.safetensors", "weights.safetensors"


class Phase(Protocol):
    """One network, or several that are trained together, and what it is that they learn."""

    name: str

    @property
    def recipe(self) -> PhaseRecipe:
        """Return how it is trained."""
        ...

    @property
    def net(self) -> nn.Module:
        """Return what is trained."""
        ...

    def read(self, step: int) -> Any:
        """Return this process's share of a step's batch, on the host; called in a thread, one step ahead."""
        ...

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Return figures by name, the first of which is minimised."""
        ...

    def sheet(self) -> Image.Image | None:
        """Draw something to look at with the network as it is."""
        ...


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """Ends a run that was asked to stop, once its state is on the disk."""


def rate_at(recipe: PhaseRecipe, step: int) -> float:
    """Return the learning rate: a line up to its full height, then half a cosine down (Loshchilov & Hutter 2017)."""
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / recipe.warmup
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)))


def train(phase: Phase, folder: Path, processes: Processes) -> None:
    """Train a phase to its end, from its last checkpoint if there is one, and give its net the averaged weights.

    Errors: TrainingError, also for a loss that is no number, and then the last checkpoint stays; Interrupted.
    """
    recipe = phase.recipe
    if (folder / WEIGHTS).exists():
        phase.net.load_state_dict(read_tensors(folder / WEIGHTS)[0], strict=True)
        return
    parameters = [parameter for parameter in phase.net.parameters() if parameter.requires_grad]
    optimizers = optimizers_of(phase.net, recipe)
    average = Average(phase.net, recipe.average) if recipe.average else None
    begin = 0
    if (folder / STATE).exists():
        begin = load_state(folder / STATE, phase.net, optimizers, average)
    processes.wait()
    figures = Figures(folder / "figures.csv", begin) if processes.first else None
    # Read before signals are held back: it may encode a bank for an hour, which Ctrl-C ends at once, and which resumes.
    first = phase.read(begin)
    started, names, stop = time.monotonic(), [], 0.0

    def report(step: int) -> None:
        """Draw the curves and a sheet, with the averaged weights."""
        assert figures is not None
        figures.draw(folder / "curves.png", names)
        picture = _sheet(phase, average)
        if picture is not None:
            write_png(folder / f"sheet-{step:07d}.png", picture)

    bar = tqdm(
        total=recipe.steps, initial=begin, desc=phase.name, unit="step", disable=not processes.first,
        mininterval=0.5 if sys.stderr.isatty() else 30, dynamic_ncols=sys.stderr.isatty(),
    )  # fmt: skip
    with bar, ThreadPoolExecutor(1) as ahead, _Signals() as signals:
        coming = ahead.submit(lambda: first)
        for step in range(begin, recipe.steps):
            batch = coming.result()
            if step + 1 < recipe.steps:
                coming = ahead.submit(phase.read, step + 1)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate_at(recipe, step)
            phase.net.zero_grad(set_to_none=True)
            losses = phase.losses(batch, step)
            next(iter(losses.values())).backward()
            processes.mean_gradients(parameters)
            length = nn.utils.clip_grad_norm_(parameters, recipe.clip or math.inf)
            shown = [value.detach().float().cpu() for value in losses.values()]
            # Whether anybody was asked to stop goes with the figures, so that all processes stop after the same step.
            *values, stop = processes.mean(torch.stack([*shown, torch.tensor(float(signals.stop))])).tolist()
            named = dict(zip(losses, values, strict=True))
            if not all(map(math.isfinite, (*values, float(length)))):
                raise TrainingError(
                    f"{phase.name}: step {step + 1} has the figures {named} and a gradient of length "
                    f"{float(length)}; the last checkpoint in {folder} is kept. Lower rate (now {recipe.rate:g}), or "
                    f"turn bfloat16 off, under another name"
                )
            for optimizer in optimizers:
                optimizer.step()
            if average is not None:
                average.update(phase.net, step)
            done = step + 1
            bar.update()
            names[:] = list(named)
            if figures is not None and (done % recipe.log_every == 0 or done == recipe.steps):
                seconds = time.monotonic() - started
                speed = recipe.batch * (done - begin) / seconds
                bar.set_postfix_str(f"{names[0]} {values[0]:.4g}, {speed:.0f} pictures/s", refresh=False)
                row = {"step": done, "seconds": seconds, "rate": rate_at(recipe, step), "gradient": float(length)}
                figures.add({**row, **named})
            if figures is not None and (done % recipe.save_every == 0 or stop) and done < recipe.steps:
                figures.write()  # whole on the disk before the state that goes on from there
                save_state(folder / STATE, done, phase.net, optimizers, average)
            if figures is not None and (done % recipe.sheet_every == 0 or done == recipe.steps):
                report(done)
            if stop and done < recipe.steps:
                coming.cancel()
                raise Interrupted(
                    f"{phase.name} stopped after {done} of {recipe.steps} steps; the same command resumes"
                )
    if average is not None:
        phase.net.load_state_dict(average.weights, strict=True)
    if processes.first:
        write_tensors(folder / WEIGHTS, phase.net.state_dict())
        (folder / STATE).unlink(missing_ok=True)
    processes.wait()
    if stop:
        raise Interrupted(f"{phase.name} is done; the same command goes on with what comes next")


def _sheet(phase: Phase, average: Average | None) -> Image.Image | None:
    if average is None:
        return phase.sheet()
    with average.within(phase.net):
        return phase.sheet()


class _Signals:
    """Notes that somebody wants the run to stop, so that it does so between two steps."""

    def __enter__(self) -> _Signals:
        self.stop = False
        try:
            self._before = {each: signal.signal(each, self._note) for each in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread
            self._before = {}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stop = True

    def __exit__(self, *error: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
