"""Compiles a Triton kernel ahead of time for a named architecture, without a GPU.

A kernel file lists what CI compiles of it:

    VARIANTS = [Variant(kernel, "640 fp16", {"x": "*fp16", "n": "i32", "WIDTH": "constexpr"}, {"WIDTH": 640})]

`compile_ahead(variant, 90)` gives PTX, machine code, what a launch needs to know, and what ptxas says of it;
`faults` says what of that is unacceptable. Compilations are cached by Triton (TRITON_CACHE_DIR), ptxas's report
is not. Under TRITON_INTERPRET=1 there is nothing to compile: `compile_ahead` then raises RuntimeError.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
# The most shared memory one program may use, bytes (CUDA C++ programming guide, technical specifications: the
# multiprocessor's memory less 1 KB that the system keeps). What needs more does not launch.
SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
ARCHITECTURES = tuple(SHARED_LIMIT)
# A TensorRT plugin launches with no more than the default limit: nobody there raises it.
PLUGIN_SHARED_LIMIT = 48 << 10
# TensorRT's own compiler reads PTX up to this version; Triton 3.9 writes 9.4 by default.
PLUGIN_PTX_VERSION = 87


@dataclass(frozen=True)
class Variant:
    """One way in which a kernel is compiled.

    signature   the kernel's `parameters` in order: "*fp16", "*bf16", "*fp32", "*i64", "i32", "i64", "fp32"
                or "constexpr"
    constants   the value of each constexpr parameter
    archs       the architectures it is meant for (90 is sm_90)
    divisible   integer parameters that are multiples of 16; a launch at run time finds that out by itself
    unaligned   pointers that are not 16-byte aligned; all others are declared to be
    plugin      whether it may become a TensorRT plugin, hence has to fit into 48 KB
    fusion      whether a multiplication and an addition may become one instruction with one rounding
    """

    kernel: Any
    name: str
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    archs: tuple[int, ...] = ARCHITECTURES
    divisible: tuple[str, ...] = ()
    unaligned: tuple[str, ...] = ()
    plugin: bool = False
    fusion: bool = True

    def __str__(self) -> str:
        return f"{kernel_name(self.kernel)} {self.name}"


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel: what a launch needs, and what ptxas reported. Sizes are in bytes."""

    name: str  # of the entry point in `ptx` and `cubin`
    arch: int
    ptx: str = field(repr=False)
    cubin: bytes = field(repr=False)
    parameters: tuple[str, ...]  # as the entry point takes them; the last two are Triton's scratch pointers
    num_warps: int
    shared: int  # dynamic shared memory of a launch
    global_scratch: int  # of device memory a program; 0 here, so a launch passes null pointers
    profile_scratch: int
    registers: int  # a thread
    spills: int  # stored plus loaded
    stack: int  # local memory a thread, spills included
    messages: tuple[str, ...]  # ptxas's warnings and notes, such as C7512 (a wgmma that became serial)

    @property
    def cp_async_widths(self) -> tuple[int, ...]:
        """Return the bytes a thread copies from device to shared memory at once, each width that occurs: 16 is best."""
        widths = re.findall(r"cp\.async\.c[ag]\.shared\.global\S* \[[^]]*\], \[[^]]*\], (0x[0-9a-f]+|\d+)", self.ptx)
        return tuple(sorted({int(width, 0) for width in widths}))

    @property
    def wgmma(self) -> bool:
        """Return whether it uses the matrix instruction that only Hopper has."""
        return "wgmma.mma_async" in self.ptx

    @property
    def global_widths(self) -> dict[str, tuple[int, ...]]:
        """Return the bytes a thread reads ("ld") and writes ("st") of device memory at once, each width that occurs."""
        widths: dict[str, set[int]] = {"ld": set(), "st": set()}
        pattern = r"\b(ld|st)\.global((?:\.[a-zA-Z]\w*(?:::\w+)*)*?)(?:\.v(\d))?\.[busf](\d+)\b"
        for kind, _, lanes, bits in re.findall(pattern, self.ptx):
            widths[kind].add(int(lanes or 1) * int(bits) // 8)
        return {kind: tuple(sorted(sizes)) for kind, sizes in widths.items()}


def kernel_name(kernel: Any) -> str:
    return kernel.fn.__name__


def parameters(kernel: Any) -> list[str]:
    """Return the parameters of a kernel, which a Variant's signature names."""
    return list(kernel.arg_names)


def source_of(variant: Variant, arch: int) -> tuple[ASTSource, GPUTarget, dict[str, Any]]:
    """Return what triton.compile takes, as a launch describes it, so that each finds the other's in Triton's cache.

    Errors: ValueError where the variant does not fit its kernel, or the architecture is none of ours.
    """
    if arch not in SHARED_LIMIT:
        raise ValueError(f"architecture {arch} is none of {', '.join(map(str, ARCHITECTURES))}")
    names, signature, constants = parameters(variant.kernel), dict(variant.signature), dict(variant.constants)
    if list(signature) != names:
        raise ValueError(f"{variant}: the signature names {list(signature)}, the kernel takes {names}")
    aligned = [n for n, kind in signature.items() if kind.startswith("*") and n not in variant.unaligned]
    attributes: dict[tuple[int, ...], list] = {(names.index(name),): [] for name in variant.unaligned}
    if VERSION >= (3, 7):
        attributes |= {(names.index(name),): [] for name in constants}
    attributes |= {(names.index(name),): [["tt.divisibility", 16]] for name in [*aligned, *variant.divisible]}
    options: dict[str, Any] = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    if not variant.fusion:
        options["enable_fp_fusion"] = False
    source = ASTSource(variant.kernel, signature, constants, dict(sorted(attributes.items())))
    return source, GPUTarget("cuda", arch, 32), options


def compile_ahead(variant: Variant, arch: int, ptx_version: int | None = None) -> Compiled:
    """Compile a variant for an architecture. Errors: those of `source_of`.

    `ptx_version` (87 is 8.7) limits the PTX for a reader older than Triton's ptxas; a plugin needs PLUGIN_PTX_VERSION.
    It does not work under TRITON_STORE_BINARY_ONLY, where there is no PTX.
    """
    if not isinstance(variant.kernel, triton.JITFunction):
        raise RuntimeError(f"{variant} cannot be compiled: Triton was imported under TRITON_INTERPRET=1")
    source, target, options = source_of(variant, arch)
    if ptx_version is not None:
        options["ptx_version"] = ptx_version
    kernel = triton.compile(source, target=target, options=options)
    meta, ptx = kernel.metadata, kernel.asm["ptx"]
    report = ptxas_report(ptx, arch)
    runtime = [name for name, kind in variant.signature.items() if kind != "constexpr"]
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    return Compiled(
        name=meta.name,
        arch=arch,
        ptx=ptx,
        cubin=kernel.asm["cubin"],
        parameters=(*runtime, "global_scratch", "profile_scratch"),
        num_warps=meta.num_warps,
        shared=meta.shared,
        global_scratch=meta.global_scratch_size,
        profile_scratch=meta.profile_scratch_size,
        registers=max(map(int, re.findall(r"Used (\d+) registers", report))),
        spills=sum(map(int, spilled)),
        stack=max(map(int, re.findall(r"(\d+) bytes stack frame", report))),
        messages=tuple(line for line in report.splitlines() if re.search(r"\(C\d+\)|warning|error", line)),
    )


def ptxas_report(ptx: str, arch: int) -> str:
    """Return what `ptxas -v` says of PTX. It lies in Triton's wheel; Triton itself would need a device to say it."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    command = [get_ptxas(arch).path, "-v", f"--gpu-name={sm_arch_from_capability(arch)}"]
    if VERSION >= (3, 7):  # as Triton calls it, for a fault of ptxas 13
        command.append("--regAllocOptLevel=2")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        ran = subprocess.run([*command, str(path), "-o", os.devnull], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"ptxas for sm_{arch} failed: {ran.stderr.strip()}")
    return ran.stderr


def faults(variant: Variant, compiled: Compiled) -> list[str]:
    """Return what makes a compilation unfit to ship, a sentence each."""
    limit = min(SHARED_LIMIT[compiled.arch], PLUGIN_SHARED_LIMIT if variant.plugin else 1 << 30)
    sentences = []
    if compiled.spills or compiled.stack:
        sentences.append(f"spills {compiled.spills} bytes, {compiled.stack} bytes of local memory a thread")
    if compiled.shared > limit:
        sentences.append(f"{compiled.shared} bytes of shared memory are more than {limit}")
    if compiled.global_scratch or compiled.profile_scratch:
        sentences.append(f"needs {compiled.global_scratch} + {compiled.profile_scratch} bytes of scratch")
    sentences += [message for message in compiled.messages if "C7512" in message or "serializ" in message]
    return sentences
