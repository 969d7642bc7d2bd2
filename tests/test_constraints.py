"""constraints.txt has one version of whatever any extra brings, and it is the one that pyproject.toml pins."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
LOCKED = dict(line.split("==") for line in LINES)
PINS = [(extra, line) for extra, lines in EXTRAS.items() for line in lines if not line.startswith("latentd[")]


def brought(name: str, extras: set[str]) -> set[str]:
    """The names that an installed package asks for here; none of one that is not installed."""
    try:
        lines = requires(name) or []
    except PackageNotFoundError:
        return set()
    wanted = [Requirement(line) for line in lines]
    return {
        canonicalize_name(one.name)
        for one in wanted
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras or {""})
    }


def test_lines_are_a_name_and_a_version_and_nothing_else() -> None:
    """No address, no path, no local version such as torch's +cpu, and nothing that torch's CUDA build alone brings."""
    assert len(LINES) > 60 and len(LINES) == len(LOCKED) and sorted(LOCKED) == list(LOCKED)
    assert not [line for line in LINES if not re.fullmatch(r"[a-z0-9-]+==[0-9][a-z0-9.]*", line)]
    assert not [line for line in LINES if line.startswith(("nvidia-", "cuda-", "latentd"))]


def test_every_direct_pin_is_there_with_its_version() -> None:
    assert len(PINS) > 25
    for extra, line in PINS:
        name, _, version = line.partition("==")
        assert version, f"{line} of the extra {extra} is no pin"
        assert LOCKED.get(canonicalize_name(name)) == version, f"{line} of the extra {extra}: make lock"


def test_the_client_takes_the_locked_versions() -> None:
    for line in PROJECT["dependencies"]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(LOCKED[wanted.name]), line


def test_whatever_an_installed_package_brings_is_there() -> None:
    """From the pins of `dev` down, as far as packages are installed: a range that nobody locked would be found."""
    seen: set[str] = set()
    below = {canonicalize_name(Requirement(line).name) for extra, line in PINS if extra != "gpu"}
    while below - seen:
        name = (below - seen).pop()
        seen.add(name)
        below |= {one for one in brought(name, set()) if not one.startswith(("nvidia-", "cuda-"))}
    assert len(seen) > 50 and seen <= LOCKED.keys(), sorted(seen - LOCKED.keys())
