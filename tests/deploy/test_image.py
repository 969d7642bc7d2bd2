"""What can be wrong with the images without building them: sources, the ignored, the words they start with."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from server.settings import read_settings

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILES = ["deploy/Dockerfile", "deploy/Dockerfile.cuda"]
TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
).stdout.splitlines()
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]


def instructions(path: str) -> list[tuple[str, str]]:
    """Return each instruction and its arguments, lines that continue joined, comments left out."""
    lines = [line for line in (ROOT / path).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def of(path: str, name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions(path) if instruction == name]


def reaches_the_builder(name: str) -> bool:
    """Is a file in the context? The last line that matches it, or a folder that it is in, decides."""
    parts = name.split("/")
    above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    inside = True
    for line in IGNORED:
        pattern = line.removeprefix("!").replace("**/", "*")
        if any(fnmatchcase(path, pattern) for path in above):
            inside = line.startswith("!")
    return inside


def test_the_parts_are_seen() -> None:
    assert [name for name, _ in instructions(DOCKERFILES[0])][:3] == ["FROM", "WORKDIR", "COPY"]
    assert reaches_the_builder("server/app.py") and not reaches_the_builder("tests/conftest.py")
    assert not reaches_the_builder("server/__pycache__/app.pyc") and not reaches_the_builder("demo/out/a.png")


def test_the_builder_gets_what_a_wheel_is_made_of() -> None:
    source = ast.parse((ROOT / "setup.py").read_text())
    rooms = next(
        ast.literal_eval(node.value)
        for node in source.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROOMS"
    )
    needed = [name for name in TRACKED if name.startswith(("latentd/", *(f"{room}/" for room in rooms)))]
    needed += ["setup.py", "pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"]]
    assert len(needed) > 200 and not [name for name in needed if not reaches_the_builder(name)]
    others = {name.split("/")[0] for name in TRACKED if reaches_the_builder(name)} - {"latentd", *rooms}
    assert others == set(needed) & others, "nothing that an image does not need"


@pytest.mark.parametrize("path", DOCKERFILES)
def test_what_is_copied_and_installed_is_there(path: str) -> None:
    for arguments in of(path, "COPY"):
        *sources, _ = [word for word in arguments.split() if not word.startswith("--")]
        if "--from=build" in arguments.split():
            assert all(f"venv --without-pip {source}" in " ".join(of(path, "RUN")) for source in sources)
        else:
            assert all((ROOT / source).exists() for source in sources)
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", " ".join(of(path, "RUN")))
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    assert ("gpu" in extras) == path.endswith("cuda") and "/source/constraints.txt" in " ".join(of(path, "RUN"))


@pytest.mark.parametrize("path", DOCKERFILES)
def test_what_it_runs_is_unprivileged_and_starts(path: str) -> None:
    (user,) = of(path, "USER")
    assert user == "10001:10001" and f"--uid {user.split(':')[0]}" in " ".join(of(path, "RUN"))
    (entry,) = of(path, "ENTRYPOINT")
    program, *words = json.loads(entry)
    module = PROJECT["scripts"][program].partition(":")[0].removesuffix(".__main__")
    command = [sys.executable, "-m", module, *words, "--version"]
    assert "latentd" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("path", DOCKERFILES)
def test_its_environment_is_settings_that_the_server_takes(path: str) -> None:
    (line,) = of(path, "ENV")
    environment = dict(word.partition("=")[::2] for word in shlex.split(line))
    settings = read_settings([], environment)
    assert settings.host == "0.0.0.0" and "LATENTD_CACHE" in environment
    ports = {str(value) for name, value in vars(settings).items() if name.endswith("_port") and value}
    assert ports <= set(of(path, "EXPOSE")[0].split()), "all that it listens on, in the ports it takes by default"


@pytest.mark.parametrize("path", DOCKERFILES)
def test_its_health_check_is_python(path: str) -> None:
    (check,) = of(path, "HEALTHCHECK")
    python, flag, code = json.loads(check.partition(" CMD ")[2])
    assert (python, flag) == ("python", "-c") and "/readyz" in code
    ran = subprocess.run([sys.executable, flag, code.replace(":8000/", ":1/")], capture_output=True, text=True)
    assert ran.returncode == 1 and "refused" in ran.stderr, "nobody listens there, and that is a failure"
