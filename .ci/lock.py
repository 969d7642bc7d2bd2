"""Write constraints.txt: one version of every package that an extra of pyproject.toml brings, as pip resolves today.

`make lock` runs this in an empty venv of the oldest Python that latentd supports, because newer ones can have what that
one can have, and not the other way round (networkx 3.7 needs Python 3.12; 3.6.1 runs on all).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# `dev` is everything but TensorRT, whose packages are placeholders: to be resolved they must fetch the real ones from
# NVIDIA. They name each other exactly, so its line of pyproject.toml is enough.
RESOLVED = ".[dev]"
# Brought by torch's CUDA build alone, which names them itself.
LEFT_OUT = re.compile(r"latentd$|nvidia-|cuda-")
HEADER = """\
# One version of each package that an extra of pyproject.toml brings, so that every machine has the same; `make lock`
# writes this file. A constraint installs nothing: it says which version, where something asks for the package.
"""


def normalised(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolved() -> dict[str, str]:
    """The version of each package that pip would install; a local version (torch's +cpu) is its public one."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    flags = ["--dry-run", "--ignore-installed", "--report", "-", RESOLVED]
    report = json.loads(subprocess.run([*pip, *flags], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    packages = [entry["metadata"] for entry in report["install"]]
    return {normalised(package["name"]): package["version"].partition("+")[0] for package in packages}


def direct() -> dict[str, str]:
    """The pins of every extra in pyproject.toml."""
    lines = [line for lines in PYPROJECT["optional-dependencies"].values() for line in lines if "==" in line]
    return {normalised(name): version for name, _, version in (line.partition("==") for line in lines)}


def main() -> None:
    oldest = PYPROJECT["requires-python"].removeprefix(">=")
    if sys.version_info[:2] != tuple(map(int, oldest.split("."))):
        sys.exit(f"versions are locked on the oldest Python that we support: make lock PYTHON=python{oldest}")
    versions = {name: version for name, version in {**resolved(), **direct()}.items() if not LEFT_OUT.match(name)}
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    (ROOT / "constraints.txt").write_text(HEADER + "".join(lines))
    print(f"constraints.txt has {len(lines)} versions")


if __name__ == "__main__":
    main()
