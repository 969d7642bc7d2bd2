"""A child that ends with its parent: kill -9 for the parent, and the export is gone."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from engines import first_use, tether

ROOT = Path(__file__).parent.parent.parent

# What starts an export, as a server does. The export stops at its first look at the model and waits for us; its output
# is the parent's, so that of two dead processes the last one closes it.
PARENT = """
import sys
from engines import first_use
child = '''
import sys
from export import __main__ as export
def waits(model):
    print("begun", flush=True)
    sys.stdin.read()
export.is_single_file = waits
export.main(["model"])
'''
first_use._run([sys.executable, "-c", child], 2)
"""


def test_an_export_dies_with_the_server_that_began_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as parent:
        assert parent.stderr and parent.stderr.readline() == b"begun\n"
        parent.kill()
        parent.wait(30)
        assert select.select([parent.stderr], [], [], 30)[0], "the export still holds its end of the pipe"
        assert parent.stderr.read() == b""


def test_a_child_whose_parent_lives_is_left_alone() -> None:
    """It works on after the parent has told it all, and its own children are told nothing."""
    code = (
        "import os, threading; from engines.tether import end_with_parent; end_with_parent(); "
        "assert 'tether' in [t.name for t in threading.enumerate()]; assert 'LATENTD_TETHER' not in os.environ"
    )
    first_use._run([sys.executable, "-c", code], 2)


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
