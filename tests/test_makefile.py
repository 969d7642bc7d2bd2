"""What is given on make's command line reaches the program, or is refused."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from server.settings import Settings

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")}
    return subprocess.run(
        ["make", "--dry-run", *arguments],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def served(*arguments: str, **environment: str) -> str:
    """The flags with which `make serve` would start the server."""
    done = make("serve", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].partition("python -m server")[2].strip()


def test_every_setting_of_the_server_reaches_it() -> None:
    names = [*Settings.__dataclass_fields__, "config"]
    flags = served(*(f"{name.upper()}=1 2" for name in names))
    assert flags.count("--") == len(names)
    for name in names:
        assert f"--{name.replace('_', '-')} '1 2'" in flags


def test_before_make_is_given_too_except_what_shells_set() -> None:
    assert served(MODEL="a", GRPC_PORT="9001", HOST="my-machine") == "--model 'a' --grpc-port '9001'"
    assert served("HOST=::1", HOST="my-machine") == "--host '::1'"
    assert served() == served(LATENTD_SEATS="3") == served("LATENTD_SEATS=3") == ""


@pytest.mark.parametrize("word", ["serve", "check", "test", "help"])
def test_a_variable_that_no_word_takes_is_refused_with_the_list(word: str) -> None:
    done = make(word, "SEAT=3", "MODEL=a")
    assert done.returncode == 2 and done.stdout == ""
    assert "no word of make takes SEAT; there are: ADMIN ADMIN_MODELS ALLOW_HOST ARCH ATTENTION " in done.stderr
    assert " SEATS " in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("gpu-check", "OUT=a", "LIMIT=3", "SECTIONS=all", "WHEELS=w", "PYTHON=python3.11"),
        ("check", "MODEL=a", "SIZE=64x64", "SAMPLERS=all", "STEPS=3"),
        ("engines", "MODEL=a", "ARCH=sm_89", "ROWS=2", "SIZES=64x64", "TORCH_INDEX=https://example.org"),
        ("-j2", "-s", "setup"),
        ("test", "WORKERS=0"),
        ("one", "T=tests/test_makefile.py -k takes"),
    ],
)
def test_what_the_words_take_is_not(arguments: tuple[str, ...]) -> None:
    done = make(*arguments)
    assert done.returncode == 0, done.stderr


def test_a_word_that_runs_one_test_asks_which() -> None:
    assert make("one", "T=tests/a.py -x").stdout.splitlines()[-1].endswith("-m pytest tests/a.py -x")
    assert "give T=, what to run" in make("one").stdout and "-n 2 " in make("test").stdout


def test_whatever_a_word_reads_is_in_the_lists() -> None:
    """Each `$(call given,NAME,..)`, and each NAME= that `make help` tells of."""
    lists = "".join(re.findall(r"^(?:SETTINGS|OTHERS) := ((?:.*\\\n)*.*\n)", MAKEFILE, re.M))
    known = set(re.findall(r"[A-Z_]+", lists))
    read = set(re.findall(r"call given,([A-Z_]+),", MAKEFILE)) | set(
        re.findall(r"[\[ ]([A-Z_]{3,})=", make("help").stdout)
    )
    assert len(read) > 15 and read <= known, read - known


def installs(*arguments: str) -> list[str]:
    """What a word would have pip install in a clone where nothing is installed, a line a call of pip."""
    done = make(*arguments, "VENV=.venv-that-is-not-there")
    assert done.returncode == 0, done.stderr
    return re.findall(r"-m pip install.*", done.stdout)


@pytest.mark.parametrize(
    "arguments", [("demo",), ("onnx", "MODEL=a"), ("engines", "BACKEND=tensorrt_rtx"), ("test",), ("types",)]
)
def test_what_the_extras_bring_is_installed_in_the_locked_versions(arguments: tuple[str, ...]) -> None:
    extras = [line for line in installs(*arguments) if "--editable" in line]
    assert extras and all("--constraint constraints.txt" in line for line in extras)


def test_lint_installs_ruff_alone() -> None:
    (only,) = installs("lint")
    assert only.endswith("--constraint constraints.txt ruff")


def test_continuous_integration_runs_words_of_make_the_quick_ones_first() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make lint", "make types", "make test"]


def test_whoever_else_checks_calls_the_same_words() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = workflow["jobs"]["ci"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"] and os.access(ROOT / ".ci/run", os.X_OK)
    assert all(re.search(r"@v\d+\.\d+\.\d+$", step["uses"]) for step in steps if "uses" in step), "pinned by version"
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == ["make lint"]


def test_the_demo_model_is_trained_by_two_processes_unless_told_otherwise() -> None:
    """Its recipe gives each one thread."""
    told, untold = make("demo-model", "PROCESSES=4").stdout, make("demo-model").stdout
    assert "-m training run training/recipes/small-things.yaml  --processes '2'" in untold
    assert "-m training run training/recipes/small-things.yaml  --processes '4'" in told
    assert make("train", "RECIPE=a.yaml").stdout.splitlines()[-1].strip().endswith("python -m training run 'a.yaml'")
