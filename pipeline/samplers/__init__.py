"""Samplers as tables: every one is linear in what it remembers.

A seat remembers S = [x, h1, h2, h3, h4]. With `out`, the guided raw output of the UNet, one evaluation is

    [S_next, x0] = M . [S, out, noise]          M: 6 x 7

x0 is the predicted picture (previews show it). M depends only on the schedule, the sampler and the number of
steps, so it is made once a request on the host, in float64. In these files a quantity is its row: the seven
coefficients over (x, h1, h2, h3, h4, out, noise). Adding a sampler is adding a function that fills a table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pipeline.errors import InvalidRequest
from pipeline.samplers.ddim import ddim, ddpm
from pipeline.samplers.dpmpp import dpmpp
from pipeline.samplers.euler import euler, euler_a, heun
from pipeline.samplers.lcm import DISTILLED_STEPS, lcm
from pipeline.samplers.pndm import pndm
from pipeline.samplers.table import HISTORY, NOISE_COLUMN, OUT_COLUMN, STATE, Table
from pipeline.samplers.unipc import unipc
from pipeline.schedule import ScheduleSpec

__all__ = ["DISTILLED_STEPS", "HISTORY", "NOISE_COLUMN", "OUT_COLUMN", "SAMPLERS", "STATE", "Sampler", "Table", "table"]


@dataclass(frozen=True)
class Sampler:
    fill: Callable[..., Table]  # of so many steps; of one with `history` also from which step on
    most_steps: int | None = None  # None: as many as the schedule has room for
    history: bool = False  # does a step remember those before it, so that one that comes first is another?


# `_karras` where diffusers' scheduler of that name takes use_karras_sigmas.
SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(ddim),
    "ddpm": Sampler(ddpm),
    "euler": Sampler(euler),
    "euler_karras": Sampler(partial(euler, karras=True)),
    "euler_a": Sampler(euler_a),
    "heun": Sampler(heun),
    "heun_karras": Sampler(partial(heun, karras=True)),
    "dpmpp_2m": Sampler(partial(dpmpp, order=2), history=True),
    "dpmpp_2m_karras": Sampler(partial(dpmpp, order=2, karras=True), history=True),
    "dpmpp_2m_sde": Sampler(partial(dpmpp, order=2, stochastic=True), history=True),
    "dpmpp_2m_sde_karras": Sampler(partial(dpmpp, order=2, stochastic=True, karras=True), history=True),
    "dpmpp_3m_sde": Sampler(partial(dpmpp, order=3, stochastic=True), history=True),
    "dpmpp_3m_sde_karras": Sampler(partial(dpmpp, order=3, stochastic=True, karras=True), history=True),
    "unipc": Sampler(unipc, history=True),
    "unipc_karras": Sampler(partial(unipc, karras=True), history=True),
    "pndm": Sampler(pndm, history=True),
    "lcm": Sampler(lcm, most_steps=DISTILLED_STEPS),
}


@functools.lru_cache(maxsize=512)
def table(spec: ScheduleSpec, sampler: str, steps: int, begin: int = 0) -> Table:
    """Make the table of `sampler` (a key of SAMPLERS) for `steps` steps of a model with this schedule.

    The first `begin` of them are not made: the run starts from a picture at that step's level of noise, without a
    history, as diffusers' schedulers do after `set_begin_index`.

    Errors: InvalidRequest for an unknown sampler, or for more steps than the sampler or the schedule has room for.
    """
    if sampler not in SAMPLERS:
        raise InvalidRequest(f"sampler is {sampler!r}; it must be one of {', '.join(SAMPLERS)}")
    if steps < 1:
        raise InvalidRequest(f"steps is {steps}; it must be at least 1")
    most = SAMPLERS[sampler].most_steps
    if most is not None and steps > most:
        raise InvalidRequest(f"steps is {steps}; sampler {sampler} takes 1 to {most}")
    assert 0 <= begin < steps, (begin, steps)
    fill = SAMPLERS[sampler].fill
    if SAMPLERS[sampler].history:
        return fill(spec, steps, begin)
    return table(spec, sampler, steps).after(begin) if begin else fill(spec, steps)
