"""From settings to a device: the checkpoint is opened, its model loaded, and its lanes are made."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable

from engines.choice import Choice
from engines.machine.cores import available_cores
from engines.model import Beside, Model, load, on_gpu
from pipeline.checkpoint.opened import open_checkpoint
from pipeline.spec import Spec
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
    _check_settings(settings, checkpoint.spec, checkpoint.id)  # before gigabytes of weights are read for nothing
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
    _check_settings(settings, model.spec, model.id)
    reach(Stage.MAKING)
    admission = Admission(settings.queue_jobs, settings.queue_seconds)
    workers = max(1, min(4, available_cores()))
    return Device(
        model,
        sizes=_sizes(settings, model.spec),
        seats=settings.seats,
        steps=settings.max_steps,
        chunks=settings.chunks,
        admission=admission,
        metrics=metrics,
        workers=workers,
        died=died,
    )


def _sizes(settings: Settings, spec: Spec) -> list[tuple[int, int]]:
    return list(settings.sizes) or [(spec.defaults.width, spec.defaults.height)]


def _check_settings(settings: Settings, spec: Spec, model_id: str) -> None:
    """Compare the settings with the model's configs.

    Errors: SettingsError for a size that the model cannot make, and for a limit that its own defaults exceed: plain
    requests would all be refused.
    """
    default, unit = spec.defaults, spec.size_multiple
    for width, height in _sizes(settings, spec):
        if width % unit or height % unit or not (0 < width <= 4096 and 0 < height <= 4096):
            raise SettingsError(f"sizes: {width}x{height}; sides of this model are multiples of {unit}, up to 4096")
    for name, limit, what in (
        ("max_steps", settings.max_steps, default.steps),
        ("max_guidance", settings.max_guidance, default.guidance),
    ):
        if limit < what:
            raise SettingsError(
                f"{name} is {limit:g}, and {model_id} takes {what:g} where a request does not say: every such request "
                f"would be refused; give {what:g} or more"
            )
