"""One evaluation of all seats in Triton's interpreter: against float64, and against the host's bits."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
import triton.runtime.interpreter as interpreter
from torch import Tensor

from kernels.guided_step import cost, guided_step, reference
from pipeline.conditions.mask import Inpaint
from pipeline.samplers import SAMPLERS, STATE, table
from pipeline.schedule import ScheduleSpec
from pipeline.update import advance, combine, guide, keep
from tests.support.ahead import ROOT, compiled
from tests.support.comparing import SINGLE, assert_close, normal

E, D = 6, 3
SCHEDULE = ScheduleSpec(1000, 0.00085, 0.012, "scaled_linear", "epsilon", "leading", 1, False)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Buffers:
    """The kernel's `Seats`, with something in every place."""

    state: Tensor
    predictions: Tensor
    row: Tensor
    guidance: Tensor
    matrices: Tensor
    draw: Tensor
    noise: Tensor
    step: Tensor
    step_next: Tensor
    last: Tensor
    mask: Tensor
    original: Tensor
    first_noise: Tensor
    blend: Tensor
    masked: Tensor

    def copy(self) -> Buffers:
        return Buffers(*(getattr(self, f.name).clone() for f in fields(self)))


def ints(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def company(c: int = 4, h: int = 6, w: int = 7) -> Buffers:
    """Six seats: guided, unguided, stochastic, masked, empty, finished."""
    s = 6
    matrices = normal(s, E, 6, 7)
    matrices[torch.rand(matrices.shape, generator=torch.Generator().manual_seed(5)) < 0.4] = 0
    draw = torch.full((s, E), -1, dtype=torch.int32)
    draw[2] = ints(0, 1, 2, -1, 0, 1)
    matrices[:, :, :, 6] *= (draw >= 0)[:, :, None]
    return Buffers(
        state=normal(s, STATE, c, h, w),
        predictions=normal(s, c, h, w, seed=1),
        row=ints([0, 1], [2, -1], [6, 7], [3, 4], [-1, -1], [5, 8]),
        guidance=torch.tensor([7.5, 3.0, 1.5, 4.0, 2.0, 2.0]),
        matrices=matrices,
        draw=draw,
        noise=normal(s, D, c, h, w, seed=2),
        step=ints(0, 3, 1, 5, 2, 4),
        step_next=torch.full((s,), -77, dtype=torch.int32),
        last=ints(6, 4, 3, 6, 6, 4),
        mask=torch.rand(s, h, w, generator=torch.Generator().manual_seed(6)),
        original=normal(s, c, h, w, seed=3),
        first_noise=normal(s, c, h, w, seed=4),
        blend=normal(s, E, 2, seed=5),
        masked=ints(0, 0, 0, 1, 1, 1),
    )


def same(a: Buffers, b: Buffers) -> bool:
    """Bit for bit, NaN included."""
    pairs = ((getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return all(same_bits(x, y) for x, y in pairs)


def same_bits(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x.view(torch.int32), y.view(torch.int32))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(4, 6, 7), (3, 1, 1), (16, 5, 20), (1, 40, 30)])
def test_against_float64(size: tuple[int, int, int], dtype: torch.dtype, layout: str) -> None:
    seats = company(*size)
    outputs = normal(9, *size, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])
    state, predictions, step_next = reference(seats, outputs)
    guided_step(seats, outputs)
    # Sums of seven products in float32; what fp16 lost was lost before.
    assert_close(seats.state, state, SINGLE)
    assert_close(seats.predictions, predictions, SINGLE)
    assert torch.equal(seats.step_next, step_next)
    assert step_next.tolist() == [1, 4, 2, 6, 2, 4]


def test_what_is_empty_or_finished_stays_bit_for_bit() -> None:
    seats, outputs = company(), normal(9, 4, 6, 7)
    for dead in (4, 5):
        seats.state[dead, 0, 0, 0, 0] = torch.nan
    before = seats.copy()
    guided_step(seats, outputs)
    for name in ("state", "predictions"):
        now, then = getattr(seats, name)[4:], getattr(before, name)[4:]
        assert torch.equal(now.view(torch.int32), then.view(torch.int32))
    assert torch.equal(seats.step, before.step), "the kernel reads it"


def test_a_former_tenants_nan_does_not_enter() -> None:
    """Not from a history, a noise, an output, a mask or a picture that no coefficient asks for."""
    seats, outputs = company(), normal(9, 4, 6, 7)
    rows = [seats.matrices[s, seats.step[s]] for s in range(4)]  # views
    rows[0][:, 2:5], rows[1][:, 5], rows[3][:, 1:5] = 0, 0, 0
    seats.blend[3, 5, 1] = 0
    wanted = seats.copy()
    guided_step(wanted, outputs)
    seats.state[0, 2:5], seats.state[3, 1:5] = torch.nan, torch.inf
    seats.noise[:2], seats.noise[3] = torch.nan, torch.nan
    seats.first_noise[:], seats.original[:3] = torch.nan, torch.nan
    seats.mask[:3], seats.blend[:3] = torch.nan, torch.nan
    outputs[2] = torch.nan
    guided_step(seats, outputs)
    assert torch.isfinite(wanted.state[:4]).all()
    for name in ("state", "predictions"):
        assert torch.equal(getattr(seats, name)[:4], getattr(wanted, name)[:4])


def test_without_a_mask_nothing_of_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is bound by memory: what is there for other seats must cost nothing."""
    seats, outputs = company(), normal(9, 4, 6, 7)
    load, loaded = interpreter._interpreter.load, []

    def watched(pointers: Any, mask: Any, *rest: Any) -> Any:
        loaded.append(np.broadcast_to(pointers, mask.shape)[mask != 0])
        return load(pointers, mask, *rest)

    monkeypatch.setattr(interpreter, "_interpreter", Watched(load=watched, store=interpreter._interpreter.store))
    guided_step(seats, outputs)
    addresses = np.unique(np.concatenate([part.ravel() for part in loaded]))

    def numbers(x: Tensor) -> int:
        return int(((addresses >= x.data_ptr()) & (addresses < x.data_ptr() + x.nbytes)).sum())

    for name in ("mask", "original", "first_noise", "blend"):
        buffer, blend = getattr(seats, name), name == "blend"
        assert [numbers(buffer[s]) for s in range(6)] == [0, 0, 0, 2 if blend else buffer[3].numel(), 0, 0], name
    assert numbers(seats.masked) == 4, "of those who sit and have not finished"


@dataclass
class Watched:
    """Stands for the interpreter's own module, of which the kernel uses these two."""

    load: Any
    store: Any


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("known", [0.0, torch.nan, torch.inf, -torch.inf])
def test_where_a_mask_is_one_nothing_changes(known: float) -> None:
    """Not a bit: neither -0 + 0 nor 0 x infinity comes in."""
    seats, outputs = company(), normal(9, 4, 6, 7)
    seats.matrices[3, 5, 0] = 0
    seats.matrices[3, 5, 0, 0] = 1
    seats.state[3, 0, :, 0] = torch.tensor([-0.0, 1e-40, -torch.inf, 3, 1, 2, 5])
    seats.mask[3], seats.original[3] = 1, known
    free = seats.copy()
    free.masked[:] = 0
    guided_step(free, outputs)
    guided_step(seats, outputs)
    assert same_bits(seats.state, free.state) and same_bits(seats.predictions, free.predictions)


def test_programs_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU runs them in none. What one wrote and another read would show: step_next, and every seat's state."""
    outputs, first = normal(9, 4, 16, 40), company(4, 16, 40)
    wanted = first.copy()
    guided_step(wanted, outputs)
    place, seen = interpreter.interpreter_builder.set_grid_idx, []
    for seed in range(3):
        order: dict[tuple[int, int, int], tuple[int, int, int]] = {}

        def shuffled(x: int, y: int, z: int) -> None:
            seen.append((x, y, z))
            place(*order[x, y, z])  # noqa: B023 (used at once)

        grid = [(x, y, 0) for x in range(3) for y in range(6)]
        order.update(zip(grid, random.Random(seed).sample(grid, len(grid)), strict=True))
        monkeypatch.setattr(interpreter.interpreter_builder, "set_grid_idx", shuffled)
        seats = first.copy()
        guided_step(seats, outputs)
        assert same(seats, wanted)
    assert len(seen) == 3 * 18, "the interpreter asked for every program"


def test_a_seat_does_not_depend_on_its_company() -> None:
    seats, outputs = company(4, 6, 8), normal(9, 4, 6, 8)
    together = seats.copy()
    guided_step(together, outputs)
    for s in range(4):
        copy = seats.copy()
        alone = Buffers(*(getattr(copy, f.name)[s : s + 1] for f in fields(seats)))  # views, some at odd addresses
        alone.row = torch.where(alone.row >= 0, torch.arange(2, dtype=torch.int32), -1)
        guided_step(alone, outputs[seats.row[s].tolist()])
        assert torch.equal(copy.state[s], together.state[s]) and copy.step_next[s] == together.step_next[s]
        others = torch.arange(6) != s
        assert torch.equal(copy.state[others], seats.state[others]), "nobody else is touched"


@pytest.mark.parametrize(
    ("sampler", "masked"),
    [
        # Each sampler with a mask or without; what the mask does comes after what the sampler does.
        pytest.param(sampler, masked, marks=[pytest.mark.exhaustive] if number % 2 == masked else [])
        for number, sampler in enumerate(SAMPLERS)
        for masked in (False, True)
    ],
)
def test_a_whole_trajectory_has_the_hosts_bits(sampler: str, masked: bool) -> None:
    """engines/stepper.HostStepper's arithmetic, guided, at every evaluation of a real table.

    Equal, not close: the order is the same and the launcher forbids fused multiply-adds.
    """
    plan = table(SCHEDULE, sampler, 4)
    evaluations, latent = plan.evaluations, (4, 3, 5)
    noise = normal(1, max(1, plan.draws), *latent)
    mask = torch.rand(latent[1:], generator=torch.Generator().manual_seed(6))
    mask[0], mask[1] = 0, 1
    seats = replace(
        company(*latent),
        **{
            "state": torch.zeros(1, STATE, *latent),
            "predictions": torch.zeros(1, *latent),
            "row": ints([1, 0]),
            "guidance": torch.tensor([7.5]),
            "matrices": torch.from_numpy(plan.matrices.astype(np.float32))[None].contiguous(),
            "draw": torch.tensor(plan.noise, dtype=torch.int32)[None],
            "noise": noise,
            "step": ints(0),
            "step_next": ints(0),
            "last": ints(evaluations),
            "mask": mask.clone()[None],
            "original": normal(1, *latent, seed=7),
            "first_noise": normal(1, *latent),
            "blend": torch.from_numpy(plan.levels[1:].astype(np.float32))[None].contiguous(),
            "masked": ints(masked),
        },
    )
    seats.state[0, 0] = normal(*latent)
    terms = np.zeros((7, *latent), np.float32)
    terms[:STATE] = seats.state[0].numpy()
    inpaint, sums = Inpaint(seats.mask[0].numpy(), seats.original[0].numpy()), plan.sums()
    for evaluation in range(evaluations):
        outputs = normal(2, *latent, seed=evaluation)
        guided_step(seats, outputs)
        seats.step.copy_(seats.step_next)
        terms[5] = guide(outputs[1].numpy(), outputs[0].numpy(), 7.5)
        if (draw := int(plan.noise[evaluation])) >= 0:
            terms[6] = noise[0, draw].numpy()
        x0 = combine(sums[evaluation][STATE], terms)
        advance(terms, sums[evaluation])
        if masked:
            terms[0] = keep(terms[0], inpaint, seats.first_noise[0].numpy(), seats.blend[0, evaluation].numpy())
        assert np.array_equal(seats.state[0].numpy(), terms[:STATE])
        assert np.array_equal(seats.predictions[0].numpy(), x0)
    assert seats.step.tolist() == [evaluations]
    before = seats.copy()
    guided_step(seats, normal(2, *latent))
    assert same(seats, before), "finished"


def test_without_noise() -> None:
    seats, outputs = company(), normal(9, 4, 6, 7)
    seats.draw.fill_(-1)
    plain = replace(seats.copy(), noise=seats.noise[:, :0])
    guided_step(seats, outputs)
    guided_step(plain, outputs)
    assert torch.equal(plain.state, seats.state)


def test_a_mask_keeps_the_original_where_it_is_zero() -> None:
    seats, outputs = company(), normal(9, 4, 6, 7)
    seats.mask[3, :, :3], seats.mask[3, :, 3:] = 0, 1
    seats.blend[3, 5] = torch.tensor([1.0, 0.0])
    free = replace(seats.copy(), masked=torch.zeros_like(seats.masked))
    guided_step(free, outputs)
    guided_step(seats, outputs)
    assert torch.equal(seats.state[3, 0, :, :, :3], seats.original[3, :, :, :3])
    assert torch.equal(seats.state[3, 0, :, :, 3:], free.state[3, 0, :, :, 3:])
    assert torch.equal(seats.predictions, free.predictions) and torch.equal(seats.state[:3], free.state[:3])


def test_what_it_refuses() -> None:
    seats, outputs = company(), normal(9, 4, 6, 7)
    with pytest.raises(ValueError, match="row is torch.int64; it must be torch.int32"):
        guided_step(replace(seats, row=seats.row.long()), outputs)
    with pytest.raises(ValueError, match="step_next is step"):
        guided_step(replace(seats, step_next=seats.step), outputs)
    with pytest.raises(ValueError, match="outputs has shape"):
        guided_step(seats, outputs[:, :, :5])
    with pytest.raises(ValueError, match="predictions starts 4 bytes past a multiple of 16"):
        guided_step(replace(seats, predictions=torch.zeros(6 * 168 + 1)[1:].view(6, 4, 6, 7)), outputs)
    with pytest.raises(ValueError, match="matrices has shape"):
        guided_step(replace(seats, matrices=seats.matrices[:, :, :5]), outputs)


def test_the_floor() -> None:
    """DDIM reads x, and two fp16 rows, and writes x, h1..h4 and x0."""
    assert cost(1, 4, 4096, terms=2).moved == 16384 * (4 * 7 + 4)
    assert cost(3, 4, 4096, masked=True).moved - cost(3, 4, 4096).moved == 3 * 4 * (2 * 16384 + 4096)


def test_compiled() -> None:
    """States in 16-byte loads and stores; outputs in 8 where four channels of fp16 lie side by side."""
    rows = compiled(
        "guided_step",
        [("4x4096 channels-last bf16", (90,)), ("4x4096 contiguous fp16", (90,)), ("4x9216", (80, 90, 120))],
    )
    assert len(rows) == 5
    for row in rows:
        assert not row["faults"], row
        assert 16 in row["ld"] and not {1, 2} & set(row["ld"]), row
        assert row["st"] == [4, 16], row


FUSED = """
from kernels.aot import compile_ahead
from kernels.guided_step import VARIANTS
for variant in (VARIANTS[0], VARIANTS[-1]):
    ptx = compile_ahead(variant, 90).ptx
    assert "mul.rn.f32" in ptx and "add.rn.f32" in ptx
    assert "fma" not in ptx and "mul.f32" not in ptx, "ptxas may fuse what is not rounded by name"
"""


def test_as_launched_nothing_is_fused() -> None:
    """The interpreter rounds every product; that a GPU does too is what the launcher's enable_fp_fusion=False asks."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-c", FUSED], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
