"""Programmatic dependent launches: the attribute and the wait go together, and the wait is first. No GPU ran one."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton

import kernels.launch
from engines.cuda_kernels import Kernels, triton_kernels
from kernels.dependent import CONSTANT, asked, await_previous, dependent_launches, fault
from kernels.launch import launch
from tests.kernels.ahead import compiled_dependents

ROOT = Path(__file__).parent.parent.parent
OLDER = Path(sys.prefix, "triton-3.6")  # `make test` puts it there
# Of every kernel that is launched on its own.
ONE_OF_EACH = {
    "attention": ["causal d64 fp16"],
    "columns": ["1280 @ 8x8 fp16"],
    "geglu": ["geglu_kernel 1280 fp16", "5120x1280 128x128 fp16"],
    "group_norm_silu": [
        "held_kernel 1280 @ 256 silu fp16",
        "parts_kernel 320 @ 4096 shift fp16",
        "apply_kernel 320 @ 4096 silu fp16",
    ],
    "guided_step": ["4x4096 channels-last fp16"],
    "layer_norm": ["320 shift fp16"],
    "split_product": [
        "1280x5760 128x256x64 8 warps 3 stages fp16",  # of sm_90
        "1280x5760 128x128x32 8 warps 4 stages fp16",  # of the others
        "1280 of 13 bias residual fp16",
    ],
    "to_uint8": ["channels-last fp16"],
}


def own_kernels() -> dict[str, ast.FunctionDef]:
    found = {}
    for path in (ROOT / "kernels").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                found[node.name] = node
    return found


def test_every_kernel_waits_first() -> None:
    """What the compilers make of it is looked at below."""
    found = own_kernels()
    assert len(found) == 12
    for name, kernel in found.items():
        assert "triton.jit" in ast.unparse(kernel.decorator_list[0]), name
        assert kernel.args.args[-1].arg == CONSTANT and not kernel.args.defaults, name
        first = next(line for line in kernel.body if not isinstance(getattr(line, "value", None), ast.Constant))
        assert ast.unparse(first) == f"await_previous({CONSTANT})", name


def test_one_function_launches_all_of_them() -> None:
    for path in (ROOT / "kernels").glob("*.py"):
        text = path.read_text()
        assert not re.search(r"_kernel\s*\[", text), path
        assert text.count("launch_pdl") == {"aot.py": 1, "launch.py": 1}.get(path.name, 0), path


class Noted:
    """Stands in for a kernel and keeps how it was launched."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **options: self.options.append(options)


def test_the_attribute_and_the_wait_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    noted, x = Noted(), torch.zeros(1)
    monkeypatch.setattr(kernels.launch, "_can_depend", lambda kernel, x: True)
    launch(noted, (1,), x, num_warps=4)
    with dependent_launches():
        launch(noted, (1,), x, num_warps=4)
    launch(noted, (1,), x)
    off, on, after = noted.options
    assert off == {"DEPENDENT": False, "launch_pdl": False, "num_warps": 4}
    assert on == {"DEPENDENT": True, "launch_pdl": True, "num_warps": 4}
    assert after == {"DEPENDENT": False, "launch_pdl": False}
    for name in ("DEPENDENT", "launch_pdl"):
        with pytest.raises(TypeError, match="multiple values for keyword"):
            launch(noted, (1,), x, **{name: True})


@pytest.mark.parametrize("arch", [80, 89, 90, 120])
def test_where_there_are_such_launches(arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.launch, "_arch", lambda device: arch)
    card: Any = SimpleNamespace(is_cuda=True, device=SimpleNamespace(index=0))
    compiles = object.__new__(triton.JITFunction)
    assert kernels.launch._can_depend(compiles, card) == (arch >= 90)
    assert not kernels.launch._can_depend(await_previous, card), "the interpreter has no such wait"
    assert not kernels.launch._can_depend(compiles, torch.zeros(1))


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the kernels as one value: every function that launches, and only inside its calls."""
    seen: list[bool] = []
    monkeypatch.setattr(kernels.launch, "asked", lambda: seen.append(asked()) or False)

    def launches(made: Kernels) -> tuple[list[torch.Tensor], list[bool]]:
        torch.manual_seed(0)
        seen.clear()
        x, w = torch.randn(2, 16, 32), torch.randn(32)
        picture = torch.randn(1, 32, 4, 4).contiguous(memory_format=torch.channels_last)
        found = [
            made.attention(x, x, x, 1),
            made.layer_norm(x, w, w, 1e-5),
            made.geglu(x),
            made.geglu_linear(x, *made.interleave(torch.randn(64, 32), None)),
            made.group_norm_silu(picture, w, w, 8, 1e-5),
            made.columns(picture),
            made.split_product(x, torch.randn(16, 32)),
            made.to_uint8(picture[:, :3].contiguous())[0],
        ]
        return found, list(seen)

    off, on = launches(triton_kernels()), launches(triton_kernels(dependent=True))
    assert set(off[1]) == {False} and set(on[1]) == {True} and len(off[1]) == len(on[1]) == 9
    assert all(torch.equal(a, b) for a, b in zip(off[0], on[0], strict=True)) and not asked()
    assert triton_kernels(dependent=True).guided_step.__wrapped__ is triton_kernels().guided_step  # pyright: ignore


ENTRY = """.visible .entry k(.param .u64 k_param_0)
{{
\t.reg .b32 \t%r<4>;
$L__func_begin0:
\tld.param.b64 \t%rd1, [k_param_0];
$L__tmp0:
\t.loc\t1 2 0 // k.py:2
{body}
\tret;
}}
"""
WAIT, NEXT = "\tgriddepcontrol.wait; // dummy %r1", "\tgriddepcontrol.launch_dependents; // dummy %r2"
LOAD = "\tld.global.b32 %r3, [%rd1];"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([WAIT, NEXT, LOAD], ""),
        (["\tadd.s32 %r3, %r3, 1;", WAIT, LOAD, NEXT], ""),
        ([LOAD, WAIT, NEXT], "but comes to: ld.global.b32 %r3, [%rd1]"),
        (["\tcp.async.cg.shared.global [%r1], [%rd1], 16;", WAIT, NEXT], "but comes to: cp.async.cg"),
        (["\tatom.global.add.u32 %r1, [%rd1], 1;", WAIT, NEXT], "but comes to: atom.global"),
        ([NEXT, WAIT, LOAD], "but comes to: griddepcontrol.launch_dependents"),
        (["\t@%p1 bra $L__BB0_2;", WAIT, NEXT, "$L__BB0_2:", LOAD], "but comes to: @%p1 bra"),
        (["$L__BB0_1:", WAIT, NEXT], "but comes to: $L__BB0_1:"),
        (["\t@%p1 griddepcontrol.wait;", NEXT], "but comes to: @%p1 griddepcontrol.wait"),
        ([LOAD], "waits 0 times for the kernel before and lets the next begin 0 times, not 1"),
        ([WAIT, LOAD], "lets the next begin 0 times, not 1"),
        ([WAIT, NEXT, WAIT], "waits 2 times"),
    ],
)
def test_the_check_of_ptx_can_fail(lines: list[str], told: str) -> None:
    ptx = ENTRY.format(body="\n".join(lines))
    found = fault(ptx, dependent=True)
    assert (told in found) if told else not found
    assert bool(fault(ptx, dependent=False)) == (lines != [LOAD])


@pytest.mark.parametrize(("path", "arch"), [(None, 90), (OLDER, 120)], ids=["pinned", "older"])
def test_compiled(path: Path | None, arch: int) -> None:
    """Nothing spills, no wgmma is serial, and the wait is first, which is one of the faults. Each version has one of
    the architectures here, and both in `make kernels`."""
    wanted = {kernel: [(name, (arch,)) for name in names] for kernel, names in ONE_OF_EACH.items()}
    rows = compiled_dependents(wanted, path=path)
    assert {row["name"].split()[0] for row in rows} == set(own_kernels())
    for row in rows:
        assert row["triton"].startswith("3.6.") == (path is not None) and row["name"].endswith(" dependent")
        assert not row["faults"], row


MACHINE_CODE = """
import re, subprocess, sys, tempfile
from triton import knobs
from kernels.aot import compile_ahead, dependents
from kernels import attention, group_norm_silu, guided_step

for module, text in (
    (attention, "causal d64 fp16"),
    (group_norm_silu, "parts_kernel 320 @ 4096 shift fp16"),
    (guided_step, "4x4096 channels-last fp16"),
):
    variant = next(one for one in dependents(module.VARIANTS) if text in str(one) and 90 in one.archs)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compile_ahead(variant, 90).cubin)
        file.flush()
        listing = subprocess.run([knobs.nvidia.nvdisasm.path, file.name], capture_output=True, text=True).stdout
    print(*re.findall(r"/\\*[0-9a-f]{4,}\\*/\\s+(.*?);", listing)[:40], sep="|")
"""


def test_machine_code_waits_first() -> None:
    """ptxas schedules instructions anew: it keeps the wait, ACQBULK, ahead of whatever touches memory or branches."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", MACHINE_CODE]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        instructions = [one.strip() for one in line.split("|")]
        before = instructions[: instructions.index("ACQBULK")]
        assert len(before) < 10 and {one.split()[0] for one in before} <= {"LDC", "S2R", "ULDC.64"}, before
