"""From settings to a device: the checkpoint is opened, its model loaded, and its lanes are made."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable

from engines.choice import Choice
from engines.machine.cores import available_cores
from engines.model import Beside, Model, load, on_gpu
from pipeline.checkpoint.opened import open_checkpoint
from server.batching.admission import Admission
from server.device.loop import Device
from server.metrics import Metrics
from server.settings import Settings, SettingsError

log = logging.getLogger("latentd.server")


class Stage(enum.IntEnum):
    """A part of a swap. Before DRAINING the old model serves, and the swap may be cancelled."""

    CHECKING = 1
    LOADING = 2
    MAKING = 3
    MEASURING = 4
    DRAINING = 5
    DONE = 6


def load_model(settings: Settings) -> Model:
    """Open and load the checkpoint that the settings name."""
    choice = choice_of(settings)
    on_gpu(choice)  # a device that is not here is told before the model is read; asking again costs next to nothing
    checkpoint = open_checkpoint(settings.model, settings.prediction)
    if checkpoint.has_safety_checker:
        log.warning("the checkpoint's safety checker is not run: pictures are delivered as they come")
    return load(
        checkpoint, choice, Beside(settings.style_adapter, settings.style_encoder, settings.judge, settings.loras)
    )


def choice_of(settings: Settings) -> Choice:
    """Return how the settings have a model run."""
    return Choice(
        settings.backend,
        settings.precision,
        settings.threads or None,
        settings.device,
        settings.pixels,
        settings.attention,
    )


def device_of(
    settings: Settings,
    metrics: Metrics,
    make: Callable[[Settings], Model],
    died: Callable[[], object],
    reach: Callable[[Stage], None] = lambda stage: None,
) -> Device:
    reach(Stage.LOADING)
    model = make(settings)
    default, unit = model.spec.defaults, model.spec.size_multiple
    sizes = list(settings.sizes) or [(default.width, default.height)]
    for width, height in sizes:
        if width % unit or height % unit or not (0 < width <= 4096 and 0 < height <= 4096):
            raise SettingsError(f"sizes: {width}x{height}; sides of this model are multiples of {unit}, up to 4096")
    _check_limits(settings, model)
    reach(Stage.MAKING)
    admission = Admission(settings.queue_jobs, settings.queue_seconds)
    workers = max(1, min(4, available_cores()))
    return Device(
        model,
        sizes=sizes,
        seats=settings.seats,
        steps=settings.max_steps,
        chunks=settings.chunks,
        admission=admission,
        metrics=metrics,
        workers=workers,
        died=died,
    )


def _check_limits(settings: Settings, model: Model) -> None:
    """Errors: SettingsError for a limit that the model's own defaults exceed: plain requests would all be refused."""
    default = model.spec.defaults
    for name, limit, what in (
        ("max_steps", settings.max_steps, default.steps),
        ("max_guidance", settings.max_guidance, default.guidance),
    ):
        if limit < what:
            raise SettingsError(
                f"{name} is {limit:g}, and {model.id} takes {what:g} where a request does not say: every such request "
                f"would be refused; give {what:g} or more"
            )
