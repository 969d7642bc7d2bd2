"""Triton's cache moved to another machine: what is found again, and what is not (docs/gpu.md)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
OLDER = Path(sys.prefix, "triton-3.6")  # `make test` puts Triton 3.6.0 there

# Compiles two kernels as a launch does, and says how many of them the cache had.
COMPILE = """
import triton
from kernels.aot import source_of
from kernels.geglu import VARIANTS as geglu
from kernels.layer_norm import VARIANTS as layer_norm

hits = []
triton.knobs.compilation.listener = lambda *, cache_hit, **told: hits.append(cache_hit)
for variants in (geglu, layer_norm):
    source, target, options = source_of(variants[0], 90)
    triton.compile(source, target=target, options=options)
print(sum(hits), len(hits))
"""


def hits(cache: Path, path: str) -> tuple[int, int]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "TRITON_STORE_BINARY_ONLY": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), path]))
    command = [sys.executable, "-c", COMPILE]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found, asked = map(int, ran.stdout.split())
    return found, asked


@pytest.mark.parametrize("path", ["", pytest.param(str(OLDER), marks=pytest.mark.exhaustive)], ids=["pinned", "older"])
def test_a_cache_that_travels_is_found_at_the_same_absolute_path_alone(path: str, tmp_path: Path) -> None:
    """Of each kernel it holds a list of files by their absolute paths; binaries alone suffice."""
    here, elsewhere, packed = tmp_path / "here", tmp_path / "elsewhere", tmp_path / "triton.tgz"
    assert hits(here, path) == (0, 2)
    assert not list(here.rglob("*.ptx")) and len(list(here.rglob("*.cubin"))) == 2
    with tarfile.open(packed, "w:gz") as file:
        file.add(here, arcname=".")
    shutil.rmtree(here)

    def unpacked(folder: Path) -> Path:
        with tarfile.open(packed) as file:
            file.extractall(folder, filter="data")
        return folder

    assert hits(unpacked(elsewhere), path) == (0, 2), "its lists name files that are not there"
    assert hits(unpacked(here), path) == (2, 2)
