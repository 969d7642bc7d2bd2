"""Kernels compiled ahead of time, for tests: in a process of its own, where Triton is not the interpreter.

`compiled("layer_norm", [("320 fp16", (80, 90))])` runs this file, which prints a row a compilation. `each_compiled` is
for several kernels in one process, which takes longer to begin than a kernel takes to compile.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def compiled(
    kernel: str, wanted: Sequence[tuple[str, Sequence[int]]], *, path: Path | None = None
) -> list[dict[str, Any]]:
    """Rows of those variants of kernels/<kernel>.py whose name (with its kernel's) contains the text.

    Every text has to find something; `path` may hold another Triton. Each row: triton (its version), name, arch,
    faults (a list of sentences), ld and st (bytes at once of device memory, each width that occurs), cp_async,
    wgmma, barriers, shared.
    """
    return [row for rows in each_compiled([(kernel, *one) for one in wanted], path=path) for row in rows]


def each_compiled(
    wanted: Sequence[tuple[str, str, Sequence[int]]], *, path: Path | None = None
) -> list[list[dict[str, Any]]]:
    """Return the rows of each of `wanted`: a kernel, a text and architectures, as `compiled` takes them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-m", "tests.support.ahead", json.dumps(wanted)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def main() -> None:
    import triton

    from kernels.aot import compile_ahead, faults

    every: list[list[dict[str, Any]]] = []
    for kernel, text, archs in json.loads(sys.argv[1]):
        listed = importlib.import_module(f"kernels.{kernel}").VARIANTS
        assert "torch" not in sys.modules, "kernels compile with Triton alone"
        variants = [variant for variant in listed if text in str(variant)]
        assert variants, f"no variant of {kernel} is called {text}"
        every.append(rows := [])
        for variant in variants:
            for arch in set(archs) & set(variant.archs):
                one = compile_ahead(variant, arch)
                rows.append(
                    {
                        "triton": triton.__version__,
                        "name": str(variant),
                        "arch": arch,
                        "faults": faults(variant, one),
                        **one.global_widths,
                        "cp_async": one.cp_async_widths,
                        "wgmma": one.wgmma,
                        "barriers": one.ptx.count("bar.sync"),
                        "shared": one.shared,
                    }
                )
    print(json.dumps(every))


if __name__ == "__main__":
    main()
