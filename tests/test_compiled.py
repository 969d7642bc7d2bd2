"""Tests marked `compiled`, in a process where Triton compiles kernels instead of interpreting them.

One of them alone: TESTS_THAT_COMPILE=1 python -m pytest tests/kernels/test_plugins.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(900)
def test_what_compiles(request: pytest.FixtureRequest) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    whole = ["--exhaustive"] if request.config.getoption("exhaustive") else []
    marked = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.compiled" in path.read_text()]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-m", "compiled", *whole, *marked],
        cwd=ROOT,
        env=environment | {"TESTS_THAT_COMPILE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    passed = re.findall(r"(\d+) passed", ran.stdout)
    assert ran.returncode == 0 and passed and int(passed[-1]) > 20, ran.stdout[-20000:] + ran.stderr
