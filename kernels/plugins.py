"""Puts kernels into the form in which TensorRT takes them: PTX and plain launch data. Nothing here knows TensorRT.

An ahead-of-time plugin is one launch of one PTX entry with the arguments (inputs..., scalars..., outputs...), each
scalar an i32; any other order runs and computes garbage. Hence a thin kernel of that order around the one that our
own launcher uses, and `compile_plugin`, which asserts the order on the PTX itself. There is no workspace, and no more
shared memory than a launch has by default (48 KB) unless TensorRT raises the limit, which `make trt-check` finds out.

Longer than 300 lines: half of it reads the PTX that the other half has made, and neither can be changed alone.
"""

# ruff: noqa: N803  a kernel's constants are in capitals

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import triton
import triton.language as tl

from kernels import aot
from kernels.attention import PARTS, attention_kernel, constants
from kernels.attention_tiles import Tiles, for_plugin

NAMESPACE = "latentd"
# Triton appends a pointer to global and one to profiler scratch to what the kernel declares.
SCRATCH_PARAMETERS = 2
# A large plugin is made to need more than 48 KB, only so that one can find out whether TensorRT grants it.
LARGE_STAGES = 6
LARGE_WIDTHS = (40, 64)  # where that is less than the 99 KB of the smaller architectures


@dataclass(frozen=True)
class Dim:
    """The size of `axis` of input number `tensor`."""

    tensor: int
    axis: int


@dataclass(frozen=True)
class Cdiv:
    """a / b, rounded up."""

    a: Expression
    b: int


@dataclass(frozen=True)
class Times:
    a: Expression
    b: Expression


Expression = int | Dim | Cdiv | Times


def evaluate(e: Expression, dim: Callable[[int, int], Any], cdiv: Callable[[Any, int], Any]) -> Any:
    """Return the value of `e` where a size is `dim(tensor, axis)`: integers here, symbols of shapes in TensorRT."""
    if isinstance(e, Dim):
        return dim(e.tensor, e.axis)
    if isinstance(e, Cdiv):
        return cdiv(evaluate(e.a, dim, cdiv), e.b)
    if isinstance(e, Times):
        return evaluate(e.a, dim, cdiv) * evaluate(e.b, dim, cdiv)
    return e


@dataclass(frozen=True)
class Parameter:
    """One parameter of the PTX entry. kind: "input", "scalar" or "output"; type: "*fp16", "*bf16", "*fp32" or "i32"."""

    name: str
    kind: str
    type: str


@dataclass(frozen=True)
class Plugin:
    """One plugin for one architecture. It has one output, of the type and shape of input 0; tensors are contiguous."""

    name: str  # the type of its ONNX node
    arch: int  # 90 is sm_90
    entry: str  # in `ptx`
    ptx: str = field(repr=False)
    parameters: tuple[Parameter, ...]
    scalars: tuple[Expression, ...]  # the values of the scalar parameters, in their order
    grid: tuple[Expression, Expression, Expression]
    threads: int  # a block
    shared: int  # bytes a block

    @property
    def inputs(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.kind == "input")

    def launch(self, *shapes: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the grid and the scalars of a launch on inputs of these shapes."""

        def number(e: Expression) -> int:
            return evaluate(e, lambda tensor, axis: shapes[tensor][axis], lambda a, b: -(-a // b))

        return tuple(map(number, self.grid)), tuple(map(number, self.scalars))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


class Source(Protocol):
    """The parts that a plugin is made from."""

    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> tuple[Parameter, ...]: ...
    @property
    def scalars(self) -> tuple[Expression, ...]: ...
    def grid(self, arch: int) -> tuple[Expression, Expression, Expression]: ...
    def variant(self, arch: int) -> aot.Variant: ...


def compile_plugin(source: Source, arch: int) -> Plugin:
    """Compile for one architecture; Triton caches.

    Errors: RuntimeError where the result is no plugin: the PTX entry's parameters differ from the declared ones, or
    it needs scratch memory.
    """
    variant = source.variant(arch)
    compiled = aot.compile_ahead(variant, arch, ptx_version=aot.PLUGIN_PTX_VERSION)
    if compiled.global_scratch or compiled.profile_scratch:
        raise RuntimeError(f"{source.name} for sm_{arch} needs scratch memory, which a plugin has not")
    ptx = bare(without_scratch(compiled.ptx, compiled.name), compiled.name, source.name)
    kinds = ["i32" if p.type == "i32" else "pointer" for p in source.parameters]
    if entry_kinds(ptx, source.name) != kinds:
        raise RuntimeError(f"{source.name} for sm_{arch} takes {entry_kinds(ptx, source.name)}, declared {kinds}")
    return Plugin(
        name=source.name,
        arch=arch,
        entry=source.name,
        ptx=ptx,
        parameters=source.parameters,
        scalars=source.scalars,
        grid=source.grid(arch),
        threads=32 * compiled.num_warps,
        shared=compiled.shared,
    )


def _entry(ptx: str, name: str) -> re.Match[str]:
    entry = re.search(rf"\.entry {re.escape(name)}\(\s*(.*?)\s*\)\n", ptx, re.DOTALL)
    if entry is None:
        raise RuntimeError(f"no entry {name} in the PTX")
    return entry


def _declared(ptx: str, name: str) -> list[str]:
    """Return the declarations of the entry's parameters, in order."""
    return [line.strip() for line in _entry(ptx, name)[1].split(",")]


def entry_kinds(ptx: str, name: str) -> list[str]:
    """Return what an entry takes, in order: "pointer" (to global memory), "i32", or the PTX declaration of the rest."""
    kinds = []
    for line in _declared(ptx, name):
        if re.match(r"\.param \.u64 \.ptr \.global ", line):
            kinds.append("pointer")
        else:
            kinds.append("i32" if re.match(r"\.param \.[us]32 \w+$", line) else line)
    return kinds


def without_scratch(ptx: str, name: str) -> str:
    """Return the PTX with an entry that takes what the kernel declares, and no pointers to scratch memory after that.

    TensorRT passes inputs, scalars and outputs. That it passes null for what an entry takes beyond them has been seen
    (torch_tensorrt relies on it) but is documented nowhere; a launch that passes too few reads past the host's array of
    arguments. The two are last and, in a kernel without scratch, unused, so the offsets of the others stay.
    """
    entry, lines = _entry(ptx, name), _declared(ptx, name)
    kept, dropped = lines[:-SCRATCH_PARAMETERS], lines[-SCRATCH_PARAMETERS:]
    rest = ptx[: entry.start()] + ptx[entry.end() :]
    for line in dropped:
        parameter = line.split()[-1]
        if not line.startswith(".param .u64 .ptr .global ") or re.search(rf"\b{parameter}\b", rest):
            raise RuntimeError(f"{name}: {line} is not an unused pointer to scratch memory")
    return ptx[: entry.start(1)] + ",\n\t".join(kept) + ptx[entry.end(1) :]


def bare(ptx: str, name: str, new: str) -> str:
    """Return the PTX with its entry named `new`, and without lines and paths of our sources.

    Two plugins of one plan thus never have one name, and equal kernels have equal PTX wherever the sources lie.
    """
    kept = []
    for line in ptx.splitlines():
        if re.match(r"\s*\.(file|section)\s", line):
            break  # the entry has ended; what follows is for debuggers
        if not re.match(r"\s*\.loc\s", line):
            kept.append(line)
    text = "\n".join(kept) + "\n"
    return re.sub(rf"\b{re.escape(name)}(?=_param_\d|\b)", new, text)


@triton.jit
def add_one_plugin(x: tl.tensor, n: tl.tensor, y: tl.tensor, BLOCK: tl.constexpr) -> None:
    """y = x + 1, elementwise: the smallest plugin there is."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n) + 1.0, mask=at < n)


@dataclass(frozen=True)
class AddOne:
    """x [a, b] + 1. types: fp16, bf16, fp32."""

    type: str = "fp16"
    BLOCK = 1024

    @property
    def name(self) -> str:
        return f"add_one_{self.type}"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return _parameters(["x"], ["n"], ["y"], self.type)

    @property
    def scalars(self) -> tuple[Expression, ...]:
        return (Times(Dim(0, 0), Dim(0, 1)),)

    def grid(self, arch: int) -> tuple[Expression, Expression, Expression]:
        return (Cdiv(self.scalars[0], self.BLOCK), 1, 1)

    def variant(self, arch: int) -> aot.Variant:
        signature = {p.name: p.type for p in self.parameters} | {"BLOCK": "constexpr"}
        return aot.Variant(add_one_plugin, self.name, signature, {"BLOCK": self.BLOCK}, num_stages=1, plugin=True)


def _parameters(inputs: list[str], scalars: list[str], outputs: list[str], kind: str) -> tuple[Parameter, ...]:
    return (
        *(Parameter(name, "input", f"*{kind}") for name in inputs),
        *(Parameter(name, "scalar", "i32") for name in scalars),
        *(Parameter(name, "output", f"*{kind}") for name in outputs),
    )


@triton.jit
def attention_plugin(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, t: tl.tensor, s: tl.tensor, out: tl.tensor,
    HEADS: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    Q_POS: tl.constexpr, K_POS: tl.constexpr, V_POS: tl.constexpr, OUT_POS: tl.constexpr, ALIGN: tl.constexpr,
    SCALE: tl.constexpr, CAUSAL: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, TAIL: tl.constexpr,
) -> None:  # fmt: skip
    """Attention of contiguous q [n, t, HEADS D] to k, v [n, s, HEADS D], in the order of TensorRT's arguments."""
    attention_kernel(
        q, k, v, out, t, s, t * Q_POS, s * K_POS, s * V_POS, t * OUT_POS,
        HEADS, D, D1, D2, Q_POS, K_POS, V_POS, OUT_POS, ALIGN, SCALE, CAUSAL, ROWS, KEYS, TAIL,
    )  # fmt: skip


@dataclass(frozen=True)
class Attention:
    """softmax(q k' / sqrt(width)) v for q [n, t, heads width] and k, v [n, s, heads width]; n, t, s are free."""

    heads: int
    width: int  # of one head
    type: str = "fp16"
    large: bool = False  # with more than 48 KB of shared memory, which TensorRT may or may not grant

    @property
    def refusal(self) -> str:
        """Say why the kernel does not take this; "" if it does."""
        if self.type not in ("fp16", "bf16"):
            return f"the kernel takes fp16 and bf16, not {self.type}"
        if self.width not in PARTS:
            return f"the kernel takes heads of {', '.join(map(str, PARTS))}, not {self.width}"
        if self.large and self.width not in LARGE_WIDTHS:
            return f"the kernel with more shared memory takes heads of {', '.join(map(str, LARGE_WIDTHS))}"
        return ""

    @property
    def name(self) -> str:
        return f"attention_{self.heads}x{self.width}_{self.type}" + ("_large" if self.large else "")

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return _parameters(["q", "k", "v"], ["t", "s"], ["out"], self.type)

    @property
    def scalars(self) -> tuple[Expression, ...]:
        return (Dim(0, 1), Dim(1, 1))

    def tiles(self, arch: int) -> Tiles:
        tiles = for_plugin(self.width, arch)
        if self.large:
            return tiles._replace(stages=LARGE_STAGES)
        # In this order of arguments four warps spill 24 to 32 bytes a thread on sm_86, 89 and 120; eight do not.
        return tiles._replace(warps=8) if self.width == 160 and arch != 90 else tiles

    def grid(self, arch: int) -> tuple[Expression, Expression, Expression]:
        return (Times(Times(Cdiv(Dim(0, 1), self.tiles(arch).rows), self.heads), Dim(0, 0)), 1, 1)

    def variant(self, arch: int) -> aot.Variant:
        tiles, position = self.tiles(arch), self.heads * self.width
        values = constants(self.heads, self.width, (position, position, position, position), tiles)
        return aot.Variant(
            attention_plugin,
            self.name,
            {p.name: p.type for p in self.parameters} | dict.fromkeys(values, "constexpr"),
            values,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
            plugin=not self.large,
        )
