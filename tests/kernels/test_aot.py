"""Kernels compiled ahead of time, under the pinned Triton and under the one that torch 2.11 brings (3.6.0).

Compilation happens in processes of their own: here Triton interprets. Run alone: about 40 s of one core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
OLDER = Path(sys.prefix, "triton-3.6")  # `make test` puts Triton 3.6.0 there

COMPILE = """
import dataclasses, json, sys
import triton
from kernels.aot import PLUGIN_PTX_VERSION, compile_ahead, faults
from kernels.attention import VARIANTS

def facts(variant, arch, **options):
    compiled = compile_ahead(variant, arch, **options)
    return {
        "faults": faults(variant, compiled), "registers": compiled.registers, "shared": compiled.shared,
        "cp_async": compiled.cp_async_widths, "wgmma": compiled.wgmma, "local": ".local" in compiled.ptx,
        "ldmatrix": "ldmatrix" in compiled.ptx, "name": compiled.name, "parameters": compiled.parameters,
        "entry": compiled.ptx.partition(".entry ")[2].partition(")")[0], "cubin": len(compiled.cubin),
        "version": compiled.ptx.partition(".version ")[2][:3], "type": variant.signature["q"],
        "scratch": compiled.global_scratch + compiled.profile_scratch, "stores": compiled.global_widths["st"],
    }

found = {"triton": triton.__version__, "torch": "torch" in sys.modules}
for arch, names in json.loads(sys.argv[1]).items():
    arch = int(arch)
    for variant in VARIANTS:
        if arch in variant.archs and any(variant.name.startswith(name) for name in names):
            version = {"ptx_version": PLUGIN_PTX_VERSION} if variant.plugin else {}
            found[f"{arch} {variant.name}"] = facts(variant, arch, **version)
if sys.argv[2:]:
    variant = next(v for v in VARIANTS if v.archs == (89,) and v.name.startswith("self d40 fp16"))
    found["unaligned"] = facts(dataclasses.replace(variant, unaligned=("q", "k", "v", "out")), 89)
    tiles = variant.constants | {"ROWS": 128, "KEYS": 128, "TAIL": 128}
    found["too much"] = facts(dataclasses.replace(variant, constants=tiles, num_stages=5), 89)
    for key, arch, change in (("arch", 75, {}), ("signature", 90, {"signature": {}})):
        try:
            compile_ahead(dataclasses.replace(variant, **change), arch)
        except ValueError as error:
            found[key] = str(error)
print(json.dumps(found))
"""
LAUNCH = """
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import get_cache_key, make_backend
from triton.runtime.jit import create_function_from_signature
import kernels.aot
import kernels.group_norm_silu as group_norm
import kernels.launch
from kernels.attention import _variant, attention_kernel, choose, constants

backend, tiles, wanted = make_backend(GPUTarget("cuda", 90, 32)), choose(40, 90, 4096), []

def asked(kernel, grid):
    # What a launch asks Triton's cache for, on a device of sm_90.
    def run(*arguments, num_warps, num_stages=3, **values):
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        options = {"num_warps": num_warps, "num_stages": num_stages, "debug": False, "instrumentation_mode": ""}
        options |= {name: value for name, value in values.items() if name not in kernel.arg_names}
        bound, kinds, given = bind(*arguments, **values | options)
        parsed, *source = kernel._pack_args(backend, options, bound, kinds, given)
        wanted.append(get_cache_key(ASTSource(kernel, *source), backend, backend.parse_options(parsed.__dict__), {}))

    return run

class Done(Exception): pass

def ahead(source, target, options):
    raise Done(get_cache_key(source, backend, backend.parse_options(options), {}))

triton.JITFunction.__getitem__, triton.compile = asked, ahead

def key(variant):
    try:
        kernels.aot.compile_ahead(variant, 90)
    except Done as done:
        return done.args[0]

# With t = 1, 77 keys and fused projections.
fused, out = torch.zeros(2, 1, 960).half()[..., :320], torch.zeros(2, 1, 320).half()
kernels.launch.launch(
    attention_kernel, (), fused, fused, fused, out, 1, 77, 960, 73920, 73920, 320,
    num_warps=tiles.warps, num_stages=tiles.stages, **constants(8, 40, (960, 960, 960, 320), tiles),
)
print(wanted == [key(_variant("self", 40, "fp16", tiles, 90))])

# A transformer's norms: shifted by one row for all pictures, or by one of many in a row, at any address.
known = {key(variant) for variant in group_norm.VARIANTS if variant.name.endswith("shift fp16")}
for channels, side in ((320, 64), (640, 32), (1280, 16), (1280, 8)):
    for rows in (1, 2):
        wanted.clear()
        picture = torch.zeros(rows, channels, side, side).half().contiguous(memory_format=torch.channels_last)
        one, many = torch.zeros(channels).half(), torch.zeros(rows, 3 * channels + 1).half()
        for shift in (one.expand(rows, -1), many[:, channels + 1 : 2 * channels + 1]):
            group_norm.group_norm_silu(picture, one, one, 32, 1e-6, shift=shift, silu=False)
        print(bool(wanted) and known.issuperset(wanted))
"""
# Each kind and each width of a head, both types and, for each architecture, what it alone has.
NAMES = {
    80: ["self d160 fp16", "plugin d128"],
    89: ["self d40 fp16", "self d80 bf16", "cross d160"],
    90: ["self d40 fp16", "self d64 bf16 64x64", "causal", "plugin d160", "cross d40"],
    120: ["self d40 bf16", "self d64 fp16"],
}
MORE_NAMES = {
    80: ["self d40", "self d160 fp16", "plugin d128"],
    89: ["self d40", "self d80 bf16", "plugin d160", "cross d160"],
    90: ["self d40", "self d64 bf16", "self d80 fp16", "self d160 fp16", "causal", "plugin d160", "cross d40"],
    120: ["self d40 bf16", "self d64 fp16", "cross d160"],
}
OLDER_NAMES = {80: ["self d40 fp16"], 90: ["self d40 bf16", "causal", "plugin d160"], 120: ["cross d160"]}


def python(code: str, *arguments: str, path: str, cache: Path) -> str:
    """What `code` prints in a process whose Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), path])), "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", code, *arguments]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def compiled(tmp: Path, names: dict[int, list[str]], *, path: str = "", more: str = "") -> dict[str, dict]:
    return json.loads(python(COMPILE, json.dumps(names), *filter(None, [more]), path=path, cache=tmp))


@pytest.fixture(scope="module")
def pinned(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("triton"), NAMES, more="more")


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("triton"), MORE_NAMES)


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    if not (OLDER / "triton").is_dir():
        pytest.fail(f"Triton 3.6.0 is not in {OLDER}: `make test` installs it there")
    found = compiled(tmp_path_factory.mktemp("triton-3.6"), OLDER_NAMES, path=str(OLDER))
    assert found["triton"].startswith("3.6.")
    return found


@pytest.mark.parametrize(
    ("version", "wanted"),
    [("pinned", NAMES), ("older", OLDER_NAMES), pytest.param("more", MORE_NAMES, marks=pytest.mark.exhaustive)],
    ids=["pinned", "older", "more"],
)
def test_attention_compiles_well(version, wanted, request):
    found = request.getfixturevalue(version)
    kernels = {key: facts for key, facts in found.items() if key[0].isdigit()}
    for arch, names in wanted.items():
        for name in names:
            assert any(key.startswith(f"{arch} {name}") for key in kernels), f"no variant {name} for sm_{arch}"
    for key, facts in kernels.items():
        assert facts["faults"] == [], key  # spills, shared memory, a serial wgmma, scratch
        assert not facts["local"], key
        assert facts["registers"] <= 255 and facts["cubin"] > 0, key
        assert max(facts["cp_async"]) == 16, f"{key}: K and V in pieces of {facts['cp_async']} bytes"
        assert facts["stores"] == [16], key
        assert facts["wgmma"] == key.startswith("90"), key
        assert facts["wgmma"] or facts["ldmatrix"], key
        if "64x64" in key:
            assert facts["cp_async"] == [16], key
        if "128x64" in key:  # 256 threads for a 64 x 16 second part: 8 bytes each, half of them past the head's end
            assert set(facts["cp_async"]) <= {8, 16}, key
    assert not found["torch"], "compiling needs Triton alone"
    assert {facts["type"] for facts in kernels.values()} == {"*fp16", "*bf16"}


def test_what_a_launch_needs(pinned):
    plugin = next(facts for key, facts in pinned.items() if key.startswith("90 plugin"))
    assert plugin["shared"] <= 48 << 10 and plugin["version"] == "8.7" and plugin["scratch"] == 0
    numbers = ["t", "s", "q_row", "k_row", "v_row", "out_row"]
    assert plugin["parameters"] == ["q", "k", "v", "out", *numbers, "global_scratch", "profile_scratch"]
    assert plugin["entry"].startswith(plugin["name"]) and plugin["entry"].count(".param") == len(plugin["parameters"])
    assert [".u64" in line for line in plugin["entry"].splitlines() if ".param" in line] == [
        name not in numbers for name in plugin["parameters"]
    ], "pointers are 8 bytes, integers 4, in this order"


@pytest.mark.parametrize("path", ["", str(OLDER)], ids=["pinned", "older"])
def test_a_launch_finds_what_was_compiled_ahead(path, tmp_path):
    """A prebuilt cache is of use only if keys agree: pointers' alignment, integers left alone, options."""
    assert python(LAUNCH, path=path, cache=tmp_path).split() == ["True"] * 9


def test_the_checks_can_fail(pinned):
    assert max(pinned["unaligned"]["cp_async"], default=0) < 16, "a pointer of unknown alignment is copied in pieces"
    faults = " ".join(pinned["too much"]["faults"])
    assert "spills" in faults and "of shared memory are more than 101376" in faults
    assert "75 is none of 80, 86, 89, 90, 120" in pinned["arch"]
    assert "the kernel takes ['q', 'k'" in pinned["signature"]


def test_faults_of_ptxas():
    from kernels.aot import Compiled, Variant, faults

    message = "ptxas info : (C7512) Potential Performance Loss: wgmma.mma_async instructions are serialized"
    good = Compiled("k", 90, "", b"", (), 4, 49152, 0, 0, 100, 0, 0, ())
    serial = Compiled("k", 90, "", b"", (), 4, 49153, 0, 0, 100, 0, 0, (message,))
    plain, plugin = (Variant(None, "v", {}, {}, plugin=plugin) for plugin in (False, True))
    assert faults(plain, good) == faults(plugin, good) == []
    assert faults(plain, serial) == [message]
    assert faults(plugin, serial) == ["49153 bytes of shared memory are more than 49152", message]


def test_the_interpreter_compiles_nothing():
    from kernels.aot import compile_ahead
    from kernels.attention import VARIANTS

    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        compile_ahead(VARIANTS[0], 90)
