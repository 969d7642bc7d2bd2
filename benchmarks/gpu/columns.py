"""The 3x3 convolutions of SD 1.5's two inner levels: cuDNN, and products of columns, from which `budget` shall choose.

    convolution alone       cudnn | columns, then cublas | columns, then split_product
    and the norm before it  group_norm_silu, then cudnn | group norm's columns, then cublas | .. then split_product

The second line is half a resnet: time shift, norm, SiLU, convolution, residual; what KernelOps does without and with
`columns=`. Each row has its error to float64, of the first and the last row, and its share of the convolution's floor.
At the end of each shape a row says whether the columns gained anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.check import Case, Check
from benchmarks.gpu.here import needed
from benchmarks.gpu.networks import unet_spec
from benchmarks.gpu.operations import Operation, operations
from benchmarks.gpu.timing import error, in_graph, sets

ROWS = (2, 8, 32)
# Of ours: one rounding of the result, half of 2^-10 at worst; another of the normalised picture where there is one.
_TOLERANCE = {torch.float16: 6e-4, torch.bfloat16: 5e-3, torch.float32: 4e-6}
_SECONDS = 0.03  # a row


@dataclass(frozen=True)
class Given:
    """Random inputs of one convolution, laid out as the network has them."""

    x: Tensor  # [n, in, h, w], channels-last
    weight: Tensor  # [out, in, 3, 3], channels-last
    scale: Tensor  # [in], the norm's
    bias: Tensor  # [in], the norm's
    shift: Tensor  # [n, in], the time's
    residual: Tensor  # [n, out, h, w], channels-last
    groups: int

    @property
    def matrix(self) -> Tensor:
        """[out, (ky, kx, in)]"""
        return self.weight.permute(0, 2, 3, 1).flatten(1)

    @property
    def tokens(self) -> Tensor:
        """The residual as [n, h w, out]."""
        return self.residual.flatten(2).transpose(1, 2)

    @property
    def moved(self) -> float:
        return self.x.nbytes * 10 + self.weight.nbytes + 2 * self.residual.nbytes


Way = Callable[[Given], Tensor]  # the result as [n, h w, out] or [n, out, h, w]


def cases(check: Check, rows: int) -> Iterator[Case]:
    for op in inner(check, rows):
        yield Case(f"{rows} rows columns {op.m}x{op.n}x{op.k}", partial(_measure, check, op))
        if is_usual(op):
            yield Case(f"{rows} rows split {op.m}x{op.n}x{op.k}", partial(_tiles, check, op))


def inner(check: Check, rows: int) -> list[Operation]:
    """Each different one, those that a step has most of first; at 32 rows the usual ones alone."""
    found = [op for op in operations(unet_spec(check, "SD 1.5"), rows) if op.kind == "conv" and op.kernel == (3, 1, 1)]
    sides = sorted({op.inside[1] for op in found})[:2]
    counts = Counter((op.inside, op.n) for op in found if op.inside[1] in sides)
    first = {(op.inside, op.n): op for op in reversed(found)}
    kept = [first[key] for key, _ in counts.most_common()]
    return [op for op in kept if rows < 32 or is_usual(op)][: 2 if check.dry else None]


def is_usual(op: Operation) -> bool:
    return op.inside[0] == op.n  # as many channels out as in


def inputs(check: Check, op: Operation) -> Given:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=check.device)

    channels, height, width = op.inside
    last, dtype = torch.channels_last, check.dtype
    return Given(
        random(op.rows, *op.inside).to(dtype).contiguous(memory_format=last),
        (random(op.n, channels, 3, 3) * op.k**-0.5).to(dtype).contiguous(memory_format=last),
        (random(channels) * 0.1 + 1).to(dtype),
        (random(channels) * 0.1).to(dtype),
        random(op.rows, channels).to(dtype),
        random(op.rows, op.n, height, width).to(dtype).contiguous(memory_format=last),
        unet_spec(check, "SD 1.5").groups,
    )


def ways() -> dict[str, Way]:
    """Each from a picture to its convolution, or from what precedes the norm to the sum with the residual."""
    columns, product = needed("kernels.columns", "columns"), needed("kernels.split_product", "split_product")
    norm = needed("kernels.group_norm_silu", "group_norm_silu")

    def normed(given: Given, **options: bool) -> Tensor:
        return norm(given.x, given.scale, given.bias, given.groups, 1e-5, shift=given.shift, **options)

    def plus_cublas(given: Given) -> Tensor:
        x, residual = normed(given, columns=True).flatten(0, 1), given.tokens.flatten(0, 1)
        return torch.addmm(residual, x, given.matrix.T).unflatten(0, (len(given.x), -1))

    return {
        "cudnn": lambda given: F.conv2d(given.x, given.weight, padding=1),
        "columns, cublas": lambda given: F.linear(columns(given.x), given.matrix),
        "columns, split": lambda given: product(columns(given.x), given.matrix),
        "norm, cudnn": lambda given: F.conv2d(normed(given), given.weight, padding=1).add_(given.residual),
        "norm columns, cublas": plus_cublas,
        "norm columns, split": lambda given: product(
            normed(given, columns=True), given.matrix, None, given.tokens
        ),
    }  # fmt: skip


def right(given: Given, normed: bool) -> Tensor:
    """In float64, [n, h w, out]."""
    x = given.x.double()
    if normed:
        reference = needed("kernels.group_norm_silu", "reference")
        x = reference(x, given.scale, given.bias, given.groups, 1e-5, given.shift, True)
    y = needed("kernels.columns", "reference")(x) @ given.matrix.double().T
    return y + given.tokens.double() if normed else y


def some(given: Given, rows: list[int]) -> Given:
    return Given(
        given.x[rows], given.weight, given.scale, given.bias, given.shift[rows], given.residual[rows], given.groups
    )


def launch(check: Check, op: Operation) -> None:
    """So that all is compiled."""
    given = inputs(check, op)
    for name, way in ways().items():
        if name != "norm, cudnn":
            way(given)


def launch_tiles(check: Check, op: Operation, index: int) -> None:
    """The same with the candidate of this index; nothing where there are not so many."""
    given = inputs(check, op)
    for tile in _candidates(check, op)[index:][:1]:
        needed("kernels.split_product", "split_product")(
            needed("kernels.columns", "columns")(given.x), given.matrix, tile=tile
        )


def _names(op: Operation) -> tuple[str, str]:
    """Of a row: what, case."""
    side = op.inside[1]
    return f"conv3x3 ways @{side}x{side}", f"{op.rows} rows {op.m}x{op.n}x{op.k}"


def _measure(check: Check, op: Operation) -> None:
    (what, case), floor = _names(op), op.floor(*check.ceilings())
    given, ends, took = inputs(check, op), [0, op.rows - 1], {}
    wanted = {normed: right(some(given, ends), normed) for normed in (False, True)}
    several = [given, *(inputs(check, op) for _ in range(sets(given.moved) - 1))]
    for mode, way in ways().items():
        normed = mode.startswith("norm")
        y = way(given)[ends]
        far = error(y.flatten(2).transpose(1, 2) if y.ndim == 4 else y, wanted[normed])
        allowed = _TOLERANCE[check.dtype] * (2 if normed else 1)
        if "split" in mode:
            again = torch.equal(way(given), way(given))
            good = far < allowed and again
            check.expect(good, f"{what} error", case, mode, far, f"tolerance {allowed:g}; twice the same bits: {again}")
        else:
            check.row(f"{what} error", case, mode, "", [far], note="a library's" if "cu" in mode else "")
        seconds = in_graph([partial(way, one) for one in several], seconds=_SECONDS)
        took[mode] = check.time(what, case, mode, seconds, flops=op.flops, floor=floor)
    for library, columns in (("cudnn", "columns, "), ("norm, cudnn", "norm columns, ")):
        best = min((mode for mode in took if mode.startswith(columns)), key=lambda mode: took[mode])
        gain = took[library] / took[best]
        channels, height, width = op.inside
        note = f"times as fast as {library}; KernelOps(columns=({channels}, {op.n}, {height}, {width}))"
        check.row("columns gain", case, best, "x", [gain], note=note)


def _candidates(check: Check, op: Operation) -> list[Any]:
    arch = 90
    if not check.dry:
        major, minor = torch.cuda.get_device_capability(check.device)
        arch = 10 * major + minor
    found = needed("kernels.split_product_tiles", "candidates")(op.m, op.n, op.k, arch)
    return found[: 2 if check.dry else None]


def _tiles(check: Check, op: Operation) -> None:
    """The product alone, its columns given: each tile and split that is worth a try; the best, and the table's own."""
    product, columns = needed("kernels.split_product", "split_product"), needed("kernels.columns", "columns")
    what, case = "split_product tiles", f"{op.rows} rows {op.m}x{op.n}x{op.k}"
    given = inputs(check, op)
    several = [given, *(inputs(check, op) for _ in range(sets(given.moved) - 1))]
    runs = [(columns(one.x), one.matrix) for one in several]
    wanted, took = product(*runs[0]), {}
    for tile in _candidates(check, op):
        if check.seconds_left <= 0:
            check.tell("skipped", f"{case}, {tile}", "skipped: time", what=what)
            continue
        try:
            far = error(product(*runs[0], tile=tile), wanted)
        except Exception as unfit:  # more shared memory than there is, or a compiler's refusal: not for this card
            if not check.dry:
                torch.cuda.synchronize()  # raises again what is the device's
            check.tell("absent", f"{case}, {tile}", f"{type(unfit).__name__}: {unfit}", what=what)
            continue
        if far > 2 * _TOLERANCE[check.dtype]:
            check.expect(False, f"{what} error", case, str(tile), far, "to the choice's own")
        seconds = in_graph([partial(product, *one, tile=tile) for one in runs], seconds=_SECONDS)
        took[str(tile)] = check.time(what, case, str(tile), seconds, flops=op.flops, floor=op.floor(*check.ceilings()))
    if took:
        best, first = min(took, key=lambda name: took[name]), next(iter(took))
        note = f"{took[first] / took[best]:.3f} times as fast as {first}"
        check.row("best split", case, best, "us", [1e6 * took[best]], note=note)
