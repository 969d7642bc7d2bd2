"""Samplers as AUTOMATIC1111 names them: a label and a scheduler, where ours is one word.

Labels, aliases and what `Automatic` means are modules/sd_samplers_kdiffusion.py's and modules/sd_samplers.py's (1.10).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InvalidRequest
from pipeline.samplers import SAMPLERS

AUTOMATIC, UNIFORM, KARRAS = "Automatic", "Uniform", "Karras"
SCHEDULERS = (AUTOMATIC, UNIFORM, KARRAS)
_SUFFIX = "_karras"


@dataclass(frozen=True)
class _Label:
    text: str
    aliases: tuple[str, ...] = ()
    karras: bool = False  # is what Automatic means
    eta: float | None = None  # the only one that we have; None: it has no meaning for this sampler


# A1111's Automatic is exponential for the two SDE samplers; we have no such schedule, and Karras's is the nearest.
_LABELS = {
    "euler": _Label("Euler", ("k_euler",)),
    "euler_a": _Label("Euler a", ("k_euler_a", "k_euler_ancestral"), eta=1.0),
    "heun": _Label("Heun", ("k_heun",)),
    "dpmpp_2m": _Label("DPM++ 2M", ("k_dpmpp_2m",), karras=True),
    "dpmpp_2m_sde": _Label("DPM++ 2M SDE", ("k_dpmpp_2m_sde",), karras=True, eta=1.0),
    "dpmpp_3m_sde": _Label("DPM++ 3M SDE", ("k_dpmpp_3m_sde",), karras=True, eta=1.0),
    "ddim": _Label("DDIM", eta=0.0),
    "ddpm": _Label("DDPM"),
    "pndm": _Label("PLMS"),
    "unipc": _Label("UniPC"),
    "lcm": _Label("LCM", ("k_lcm",)),
}
_NAMES = {name.lower(): ours for ours, label in _LABELS.items() for name in (ours, label.text, *label.aliases)}


def sampler_of(name: str | None, scheduler: str | None, default: str) -> str | None:
    """Return our name of a sampler and its scheduler; None: nothing was said. `default`: the model's own.

    A scheduler at the end of a sampler's name counts, as in A1111: "DPM++ 2M Karras".
    Errors: InvalidRequest for what we do not have.
    """
    label, wanted = name or _split(default)[0], scheduler or AUTOMATIC
    known = {word.lower(): word for word in SCHEDULERS}
    if wanted.lower() == AUTOMATIC.lower() and (not name or name in SAMPLERS):  # ours says all by itself
        return name or None
    if match := re.fullmatch(rf"(.+) ({UNIFORM}|{KARRAS})", label, re.IGNORECASE):
        label, wanted = match.groups()
    if (ours := _NAMES.get(label.lower())) is None:
        labels = ", ".join(each.text for each in _LABELS.values())
        raise InvalidRequest(f"sampler_name is {label[:64]!r}; there are: {labels}", "sampler_name")
    if (chosen := known.get(wanted.lower())) is None:
        raise InvalidRequest(f"scheduler is {wanted[:64]!r}; there are: {', '.join(SCHEDULERS)}", "scheduler")
    karras = chosen == KARRAS or (chosen == AUTOMATIC and _LABELS[ours].karras)
    if karras and ours + _SUFFIX not in SAMPLERS:
        raise InvalidRequest(f"scheduler is {chosen!r}, which {_LABELS[ours].text} does not have here", "scheduler")
    return ours + _SUFFIX if karras else ours


def label_of(sampler: str) -> tuple[str, str]:
    """Return A1111's label and scheduler of our sampler."""
    base, karras = _split(sampler)
    label = _LABELS[base]
    return label.text, (KARRAS if karras else UNIFORM if label.karras else AUTOMATIC)


def eta_of(sampler: str) -> float | None:
    """Return the eta that a sampler has; None where it has none, and any may be sent."""
    return _LABELS[_split(sampler)[0]].eta


def listed() -> list[dict[str, Any]]:
    """List samplers as GET /samplers does."""
    return [
        {
            "name": label.text,
            "aliases": [*label.aliases, ours],
            "options": {"scheduler": "karras"} if label.karras else {},
        }
        for ours, label in _LABELS.items()
    ]


def schedules() -> list[dict[str, Any]]:
    """List schedulers as GET /schedulers does."""
    return [
        {"name": label.lower(), "label": label, "aliases": None, "default_rho": rho, "need_inner_model": False}
        for label, rho in ((AUTOMATIC, -1.0), (UNIFORM, -1.0), (KARRAS, 7.0))
    ]


def _split(sampler: str) -> tuple[str, bool]:
    return sampler.removesuffix(_SUFFIX), sampler.endswith(_SUFFIX)


__all__ = ["eta_of", "label_of", "listed", "sampler_of", "schedules"]
