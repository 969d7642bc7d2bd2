"""Compiles every variant of every kernel ahead of time, as the rows of benchmarks/results/kernels-compiled.csv."""

from __future__ import annotations

import csv
import importlib
import os
import pkgutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import triton

import kernels
from kernels.aot import ARCHITECTURES, PLUGIN_PTX_VERSION, Variant, compile_ahead, faults

COLUMNS: tuple[str, ...] = (
    "triton",
    "kernel",
    "variant",
    "arch",
    "registers",
    "spills",
    "shared",
    "cp_async",
    "wgmma",
    "faults",
)


def listed(names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield kernel files and the number of their variants."""
    for name in names or [module.name for module in pkgutil.iter_modules(kernels.__path__)]:
        module = importlib.import_module(f"kernels.{name}") if name != "__main__" else None
        if hasattr(module, "VARIANTS"):
            yield name, len(variants(name))


def variants(name: str) -> list[Variant]:
    """Return the variants of one kernel file."""
    return importlib.import_module(f"kernels.{name}").VARIANTS


def row(task: tuple[str, int, int]) -> dict[str, object] | None:
    """Compile one variant of one file, by number, for one architecture; None where it is not meant for that."""
    name, number, arch = task
    variant = variants(name)[number]
    if arch not in variant.archs:
        return None
    compiled = compile_ahead(variant, arch, PLUGIN_PTX_VERSION if variant.plugin else None)
    return {
        "triton": triton.__version__,
        "kernel": name,
        "variant": variant.name,
        "arch": f"sm_{arch}",
        "registers": compiled.registers,
        "spills": compiled.spills,
        "shared": compiled.shared,
        "cp_async": " ".join(map(str, compiled.cp_async_widths)),
        "wgmma": "yes" if compiled.wgmma else "no",
        "faults": "; ".join(faults(variant, compiled)),
    }


def rows(names: Sequence[str] = (), archs: Sequence[int] = ARCHITECTURES) -> Iterator[dict[str, object]]:
    """Yield the rows of the named kernel files (all if none), as they come; two a process at a time."""
    tasks = [(name, i, arch) for name, count in listed(names) for arch in archs for i in range(count)]
    # Processes of their own, not forks: LLVM has threads.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for one in pool.map(row, tasks, chunksize=2):
            if one:
                yield one


def write(path: Path, new_rows: list[dict[str, object]]) -> None:
    """Write these rows, and keep the file's rows of other versions of Triton and of other kernels."""
    new = {(one["triton"], one["kernel"]) for one in new_rows}
    old: list[dict[str, object]] = []
    if path.exists():
        with path.open(newline="") as file:
            old = [dict(one) for one in csv.DictReader(file) if (one["triton"], one["kernel"]) not in new]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*old, *new_rows], key=lambda one: (str(one["triton"]), str(one["kernel"]))))
