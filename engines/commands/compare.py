"""Measures how far engines are from torch in float32: the error of each network, and of whole trajectories.

The errors are written into the manifests of the engines that made them. Whether a row's bits depend on its company
belongs to the machine, not to the engine, and is kept with what else was measured on the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.backend import Denoiser
from engines.cache import devices, store
from engines.cache.disk import DiskError
from engines.cache.sealed import Damaged
from engines.generate import latents_of
from engines.model import Model
from pipeline.arrays import F32, to_pixels
from pipeline.conditions.sizes import AS_IT_IS
from pipeline.noise import standard_normal
from pipeline.samplers import SAMPLERS

PROMPT, SEED = "a photo of a red apple", 7
# Of the largest absolute value of what the reference computes, and decibels of the picture. f32 differs by the order
# of summation alone; bf16 has 8 bits of mantissa, and its errors add up over a trajectory; f16 has 11, an eighth of
# its rounding.
TOLERANCES = {  # network, latents, picture
    "f32": (1e-3, 1e-3, 45.0),
    "f16": (1.25e-2, 6e-2, 40.0),
    "bf16": (1e-1, 5e-1, 30.0),
}
_COMPANY = 8  # rows

log = logging.getLogger("latentd.check")


@dataclass(frozen=True)
class Finding:
    what: str
    figure: str
    tolerance: str
    good: bool


def compare(
    model: Model,
    reference: Model,
    size: tuple[int, int],
    samplers: Sequence[str],
    steps: int,
    say: Callable[[Finding], None],
) -> bool:
    """Compare a model with the reference; `say` gets each finding as it comes. True when all are within tolerance."""
    network, latents, decibels = TOLERANCES[model.backend.precision]
    good = True
    errors: dict[str, float] = {}

    def report(what: str, figure: str, tolerance: str, within: bool) -> None:
        nonlocal good
        good = good and within
        say(Finding(what, figure, tolerance, within))

    def error(what: str, got: F32, wanted: F32, most: float) -> None:
        relative = float(np.abs(got - wanted).max() / np.abs(wanted).max())
        errors[what] = float(f"{relative:.2e}")
        report(what, f"{relative:.1e}", f"{most:.0e}", relative <= most)

    ids = model.tokenizer.encode(PROMPT).ids
    error("text_encoder", model.backend.encode(ids), reference.backend.encode(ids), network)
    text = reference.backend.encode_text(ids)
    beside = text.beside | AS_IT_IS.inputs(model.spec.unet, *size)
    mine, theirs = (m.backend.denoiser(*size, rows=_COMPANY) for m in (model, reference))
    unets = {name: int(name.split()[2]) for name in model.backend.identities(*size) if name.startswith("unet of ")}
    for t in (1, 500, 999):
        for denoiser in (mine, theirs):
            _fill(denoiser, text.context, t, beside)
            denoiser.run([0])
        wanted = theirs.outputs[0].copy()
        if not unets:
            error(f"unet, timestep {t}", mine.outputs[0], wanted, network)
        for name, rows in unets.items():  # each plan
            full = model.backend.together(*size, rows=rows)
            _fill(full, text.context, t, beside)
            full.run(range(rows))
            error(f"{name}, timestep {t}", full.outputs[0], wanted, network)
    clean = standard_normal(SEED, model.spec.latent_shape(*size))[0]
    error("vae_decoder", model.backend.decode(clean), reference.backend.decode(clean), network)

    agree = _rows_agree(mine)
    fast = model.backend.pixels == "fast"  # where rows may differ, and how is worth knowing
    company = f"rows alone and in company of {_COMPANY}"
    report(company, "equal" if agree else "differ", "either" if fast else "equal", agree or fast)
    _remember(model, size, agree)

    for sampler in samplers:
        most = min(steps, SAMPLERS[sampler].most_steps or steps)
        options = {"seed": SEED, "steps": most, "sampler": sampler, "width": size[0], "height": size[1]}
        got, wanted = latents_of(model, PROMPT, **options), latents_of(reference, PROMPT, **options)
        error(f"{sampler}, {most} steps: latents", got, wanted, latents)
        close = psnr(to_pixels(model.backend.decode(got)), to_pixels(reference.backend.decode(wanted)))
        report(f"{sampler}, {most} steps: picture", f"{close:.1f} dB", f"{decibels:g} dB", close >= decibels)
    _record(model, size, errors)
    return good


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the peak signal to noise ratio of two pictures, in decibels; infinite for equal ones."""
    mean = np.square(a.astype(np.float64) - b).mean()
    return float("inf") if mean == 0 else float(10 * np.log10(255**2 / mean))


def _fill(denoiser: Denoiser, context: F32, timestep: float, beside: Mapping[str, F32]) -> None:
    """Write inputs into every row, each with noise of its own."""
    denoiser.samples[:] = standard_normal(SEED, denoiser.samples.shape[1:], draws=len(denoiser.samples))
    denoiser.contexts[:], denoiser.timesteps[:] = context, timestep
    for row in range(len(denoiser.samples)):
        denoiser.put(row, beside)


def _rows_agree(denoiser: Denoiser) -> bool:
    """Return whether each row's output has the same bits alone as in company. `denoiser` has been filled."""
    everyone = range(len(denoiser.samples))
    denoiser.run(everyone)
    together = denoiser.outputs.copy()
    for row in everyone:
        denoiser.outputs[row] = np.nan
        denoiser.run([row])
    return bool((denoiser.outputs == together).all())


def _remember(model: Model, size: tuple[int, int], agree: bool) -> None:
    """Keep for this device whether rows give equal bits. On a CPU a bucket is one row, called so often."""
    facts = {"weights": model.digest, "backend": model.backend.name, "precision": model.backend.precision}
    facts |= model.backend.identity()
    devices.remember(model.backend.device_key(), {"what": "rows", "size": list(size), "rows": _COMPANY, **facts}, agree)


def _record(model: Model, size: tuple[int, int], errors: dict[str, float]) -> None:
    """Write the errors into the manifests of a backend that keeps engines; what is not in the cache has none.

    A trajectory's errors go to every plan of the UNet: which ones a step takes depends on its rows.
    """
    identities = model.backend.identities(*size)
    for name, identity in identities.items():
        others = [other for other in identities if other != name]
        figures = {
            what: value
            for what, value in errors.items()
            if what.startswith(name) or (name.startswith("unet") and not what.startswith(("unet", *others)))
        }
        try:
            store.annotate(identity, figures, model.backend.device_key())
        except (DiskError, Damaged) as error:
            log.warning("errors not written: %s", error)
