"""Tests marked `compiled`, in a process where Triton compiles kernels instead of interpreting them.

One of them alone: TESTS_THAT_COMPILE=1 python -m pytest tests/kernels/test_plugins.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(900)
def test_what_compiles() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    marked = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.compiled" in path.read_text()]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-m", "compiled", *marked],
        cwd=ROOT,
        env=environment | {"TESTS_THAT_COMPILE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0 and " passed" in ran.stdout, ran.stdout[-20000:] + ran.stderr
