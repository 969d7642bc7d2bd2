"""A child that ends with its parent: kill -9 for the parent, and the export is gone."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from engines.process import exporting, tether

ROOT = Path(__file__).parents[3]

# What starts an export, as a server does. What stands in the stage's place is its own main, which waits for us instead
# of exporting; its output is the parent's, so that of two dead processes the last one closes it.
PARENT = """
import sys
from pathlib import Path
from engines.process import exporting
exporting._ROOT = Path(sys.argv[1])
exporting.run_export([])
"""
STAGE = f"""
import sys
sys.path[0] = {str(ROOT)!r}
from export import __main__ as export
def waits(arguments):
    print("begun", flush=True)
    sys.stdin.read()
export._export = waits
export.main([])
"""


def test_an_export_dies_with_the_server_that_began_it(tmp_path: Path) -> None:
    (tmp_path / "export.py").write_text(STAGE)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, **pipes) as parent:  # type: ignore[call-overload]
        assert parent.stderr and parent.stderr.readline() == b"begun\n"
        parent.kill()
        parent.wait(30)
        assert select.select([parent.stderr], [], [], 30)[0], "the export still holds its end of the pipe"
        assert parent.stderr.read() == b""


def test_a_child_whose_parent_lives_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works on after the parent has told it all, and its own children are told nothing."""
    (tmp_path / "export.py").write_text(
        f"import os, sys, threading; sys.path[0] = {str(ROOT)!r}; "
        "from engines.process.tether import end_with_parent; end_with_parent(); "
        "assert 'tether' in [t.name for t in threading.enumerate()]; assert 'LATENTD_TETHER' not in os.environ"
    )
    monkeypatch.setattr(exporting, "_ROOT", tmp_path)
    exporting.run_export([])


@pytest.mark.parametrize("left", ["", "no number", "-1", "1048575"])
def test_a_variable_that_somebody_else_left_ends_nobody(left: str) -> None:
    environment = {"LATENTD_TETHER": left}
    tether.end_with_parent(environment)
    assert not environment


def test_both_ends_are_closed() -> None:
    with tether.tether() as (number, environment):
        assert environment["LATENTD_TETHER"] == str(number) and not os.get_inheritable(number)
    with pytest.raises(OSError):
        os.fstat(number)
