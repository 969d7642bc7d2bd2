"""Plugins as compiled: what their PTX takes, needs and touches, and that their launch is the one of our own launcher.

A wrong order of arguments runs and gives garbage, so it is proven three times: by the declared parameters, by which
of them addresses of loads and stores are made from, and by numbers in Triton's interpreter.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels.attention
from kernels import aot
from kernels.attention import attention
from kernels.plugins import (
    AddOne,
    Attention,
    Cdiv,
    Dim,
    Plugin,
    Source,
    Times,
    bare,
    compile_plugin,
    entry_kinds,
    evaluate,
    without_scratch,
)

pytestmark = pytest.mark.compiled

ROOT = Path(__file__).parent.parent.parent
# SD 1.5's heads of 40, 80 and 160, SD 2.1's of 64; one in bf16; one beyond 48 KB.
SOURCES: list[Source] = [
    AddOne("fp16"),
    Attention(8, 40),
    Attention(8, 80),
    Attention(8, 160),
    Attention(5, 64, "bf16"),
    Attention(8, 40, large=True),
]
# Every source for sm_90, which has wgmma, and two of them for all: the other kernels are compiled likewise.
ALL = [
    pytest.param(
        source,
        arch,
        id=f"{source.name}-sm_{arch}",
        marks=() if arch == 90 or source in SOURCES[:2] else pytest.mark.exhaustive,
    )
    for source in SOURCES
    for arch in aot.ARCHITECTURES
]


@pytest.mark.parametrize(("source", "arch"), ALL)
def test_compiled(source: Source, arch: int) -> None:
    plugin = compile_plugin(source, arch)
    (target,) = re.findall(r"^\.target (\S+)$", plugin.ptx, re.MULTILINE)
    assert target in (f"sm_{arch}", f"sm_{arch}a")
    assert re.findall(r"^\.version (\S+)$", plugin.ptx, re.MULTILINE) == ["8.7"], "drivers of the last two years"
    assert re.findall(r"\.entry (\w+)\(", plugin.ptx) == [plugin.entry] == [source.name]
    assert re.findall(r"\.reqntid (\d+)", plugin.ptx) == [str(plugin.threads)]
    # What stands between the entry's parentheses, with nothing left of Triton's two scratch pointers.
    (declared,) = re.findall(r"\.entry \w+\((.*?)\)\n", plugin.ptx, re.DOTALL)
    kinds = [
        "i32" if ".u32" in line else "pointer" if ".u64 .ptr .global" in line else line for line in declared.split(",")
    ]
    assert kinds == ["i32" if p.kind == "scalar" else "pointer" for p in plugin.parameters]
    order = ["input", "scalar", "output"]
    assert [p.kind for p in plugin.parameters] == sorted((p.kind for p in plugin.parameters), key=order.index)
    assert len(plugin.scalars) == sum(p.kind == "scalar" for p in plugin.parameters)
    large = isinstance(source, Attention) and source.large
    assert (plugin.shared > 48 << 10) == large and plugin.shared <= aot.SHARED_LIMIT[arch]
    # The shortened PTX assembles, and nothing about it spills.
    report = aot.ptxas_report(plugin.ptx, arch)
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report
    # Neither of these launches happens by itself inside a plugin.
    assert not re.search(r"griddepcontrol|\.cluster|tensormap|cp\.async\.bulk", plugin.ptx)
    assert "/" not in re.sub(r"//.*", "", plugin.ptx), "a path of this machine"


def addresses(plugin: Plugin) -> tuple[list[set[int]], list[set[int]]]:
    """Of each load from and each store to device memory: the numbers of the parameters that make its address."""
    made: dict[str, set[int]] = {}
    lines = [line.strip() for line in plugin.ptx.splitlines() if line.startswith("\t") and line.strip().endswith(";")]
    size = -1
    while size != (size := sum(map(len, made.values()))):  # loops carry addresses around
        for line in lines:
            parameter = re.search(r"ld\.param\.\S+\s+(%\w+), \[\w+_param_(\d+)\]", line)
            if parameter:
                made.setdefault(parameter[1], set()).add(int(parameter[2]))
            elif not re.search(r"\bld\.|\bst\.|cp\.async", line):
                target, *sources = re.findall(r"%\w+", re.sub(r"^@!?%p\d+ ", "", line)) or [""]
                made.setdefault(target, set()).update(*(made.get(source, set()) for source in sources))

    def of(pattern: str) -> list[set[int]]:
        found = (re.search(pattern, line) for line in lines)
        return [made[match[1]] for match in found if match]

    return (
        of(r"\bld\.global\S*.*\[ *(%\w+)") + of(r"cp\.async\.c[ag]\.shared\.global\S* \[[^]]*\], \[ *(%\w+)"),
        of(r"\bst\.global\S* +\[ *(%\w+)"),
    )


@pytest.mark.parametrize("arch", aot.ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES[:2], ids=lambda source: source.name)
def test_loads_are_from_inputs_and_stores_to_the_output(source: Source, arch: int) -> None:
    plugin = compile_plugin(source, arch)
    kind = [p.kind for p in plugin.parameters]
    scalars = {i for i, k in enumerate(kind) if k == "scalar"}
    loads, stores = addresses(plugin)
    assert loads and stores
    assert {frozenset(made - scalars) for made in loads} == {frozenset({i}) for i, k in enumerate(kind) if k == "input"}
    assert {frozenset(made - scalars) for made in stores} == {frozenset({len(kind) - 1})}


SHAPES = [(1, 4096, 4096), (2, 4096, 77), (3, 63, 77), (16, 65, 154), (1, 1, 1), (2, 64, 128), (5, 513, 7)]


@pytest.mark.parametrize("width", [40, 64, 80, 160])
def test_the_launch_is_the_attention_launchers(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own launcher with a plugin's tiles, its kernel replaced by what notes the launch."""
    source, seen = Attention(3, width), []

    class Noted:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            return lambda *arguments, **options: seen.append((grid, arguments[4:6], options))

    monkeypatch.setattr(kernels.attention, "attention_kernel", Noted())
    variant, plugin = source.variant(90), compile_plugin(source, 90)
    for n, t, s in SHAPES:
        q, k = torch.zeros(n, t, 3 * width, dtype=torch.float16), torch.zeros(n, s, 3 * width, dtype=torch.float16)
        attention(q, k, k, 3, tiles=source.tiles(90))
        grid, scalars = plugin.launch(tuple(q.shape), tuple(k.shape), tuple(k.shape))
        (launched, (their_t, their_s), options) = seen.pop()
        assert grid == (*launched, 1, 1)[:3] and scalars == (their_t, their_s)
        assert 32 * options.pop("num_warps") == plugin.threads and options.pop("num_stages") == variant.num_stages
        # Strides of positions mean nothing where there is one position, and the launcher gives none of its own then.
        assert options == dict(variant.constants)


INTERPRETED = """
import torch
from kernels.attention import reference
from kernels.plugins import AddOne, Attention, add_one_plugin, attention_plugin, evaluate

def launch(kernel, source, inputs):
    dim, cdiv = lambda tensor, axis: inputs[tensor].shape[axis], lambda a, b: -(-a // b)
    grid = tuple(evaluate(e, dim, cdiv) for e in source.grid(90))
    scalars = [evaluate(e, dim, cdiv) for e in source.scalars]
    out = torch.full_like(inputs[0], float("nan"))
    kernel[grid](*inputs, *scalars, out, **source.variant(90).constants)
    return out

torch.manual_seed(0)
for n, t, s in [(1, 64, 64), (2, 70, 77), (3, 1, 5)]:
    source = Attention(2, 40)
    q, k, v = (torch.randn(n, length, 80, dtype=torch.float16) for length in (t, s, s))
    error = (launch(attention_plugin, source, [q, k, v]).double() - reference(q, k, v, 2)).abs().max().item()
    print(error)
x = torch.randn(3, 1000, dtype=torch.float16)
print((launch(add_one_plugin, AddOne(), [x]) - (x + 1)).abs().max().item())
"""


def test_numbers_in_the_interpreter() -> None:
    """The order (inputs, scalars, outputs) by numbers: q, k and v are random, so none can stand for another."""
    ran = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        cwd=ROOT,
        env={"PATH": "", "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    *errors, exact = map(float, ran.stdout.split())
    # fp16's half unit is 2^-11 of values up to 4 (2e-3 there), and the weights are rounded to fp16 as well.
    assert len(errors) == 3 and max(errors) < 4e-3
    assert exact == 0


def test_expressions() -> None:
    e = Times(Times(Cdiv(Dim(0, 1), 64), 8), Dim(1, 0))
    shapes = ((2, 65), (3, 1))
    assert evaluate(e, lambda tensor, axis: shapes[tensor][axis], lambda a, b: -(-a // b)) == 48


PTX = """.version 8.7
.visible .entry f(
	.param .u64 .ptr .global .align 1 f_param_0,
	.param .u32 f_param_1,
	.param .u64 .ptr .global .align 1 f_param_2,
	.param .u64 .ptr .global .align 1 f_param_3
)
{
	.loc	1 2 3                           // file.py:2:3
	ld.param.b64 	%rd1, [f_param_0];
	ret;
}
	.file	1 "/home/somebody/file.py"
"""


def test_scratch_that_is_used_or_missing_is_refused() -> None:
    assert entry_kinds(without_scratch(PTX, "f"), "f") == ["pointer", "i32"]
    with pytest.raises(RuntimeError, match="f_param_3 is not an unused pointer"):
        without_scratch(PTX.replace("[f_param_0]", "[f_param_3]"), "f")
    with pytest.raises(RuntimeError, match="f_param_2 is not an unused pointer"):
        without_scratch(PTX.replace(".u64 .ptr .global .align 1 f_param_2", ".u64 f_param_2"), "f")
    text = bare(PTX, "f", "g")
    assert "entry g(" in text and "[g_param_0]" in text and ".loc" not in text and "somebody" not in text


def test_scratch_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ahead = aot.compile_ahead
    monkeypatch.setattr(
        aot, "compile_ahead", lambda *a, **k: dataclasses.replace(compile_ahead(*a, **k), global_scratch=64)
    )
    with pytest.raises(RuntimeError, match="add_one_fp16 for sm_90 needs scratch memory"):
        compile_plugin(AddOne(), 90)


def test_the_hash_is_one_of_everything_that_a_launch_is() -> None:
    plugin = compile_plugin(AddOne(), 90)
    changed = [
        dataclasses.replace(plugin, **{name: value}) for name, value in (("threads", 64), ("ptx", ""), ("shared", 1))
    ]
    assert len({plugin.sha256, *(p.sha256 for p in changed)}) == 4
    assert plugin.sha256 == compile_plugin(AddOne(), 90).sha256


def test_what_the_kernel_does_not_take() -> None:
    assert Attention(8, 40).refusal == Attention(1, 64, "bf16").refusal == ""
    assert "not fp32" in Attention(8, 40, "fp32").refusal
    assert "not 512" in Attention(1, 512).refusal
    assert "heads of 40, 64" in Attention(8, 160, large=True).refusal
